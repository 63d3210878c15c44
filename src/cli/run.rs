//! `sandbox run`.

use std::io::Write;
use std::sync::Arc;

use clap::Args;

use crate::error::{Result, fault};
use crate::given::Provenance;
use crate::host::Host;
use crate::image::ResolvedImage;
use crate::kept::{self, Choice, Kept};
use crate::layer::{Layer, Manager};
use crate::part::network::publish::Reserved;
use crate::plan::{Plan, UnitKind};
use crate::profile::Profile;
use crate::run::Begun;
use crate::sealed;
use crate::spec::{RootSource, Spec};
use crate::systemd::Grace;
use crate::timings::Timings;
use crate::unit;

const USAGE: &str = "sandbox run [OPTIONS] [--] CMD [ARG]...";

const AFTER_HELP: &str = "\
Examples:
  sandbox run -- bash
      A shell on a copy-on-write view of this machine.
  sandbox run --slice=test --unit=toptest \\
          -p CPUShares=600 -p MemoryMax=500M -- top -b
      With limits, in a unit that `systemctl status toptest.scope` shows.
  sandbox run --bind $PWD --network host -- make
      With a directory of this machine and its network.
  sandbox run --image nginx --network pasta --publish 8080:80
      A server that is reached at port 8080 of this machine.
  sandbox run --rootfs /srv/debian --read-only --tmpfs /run:16M -- /sbin/daemon
      On a tree of its own that nothing can write to.
  sandbox run --image mysql:5.7 -m 1G
      What an image says to run, on its layers, limited.
  sandbox run --name web --keep --image debian -- bash
      With writes that stay: the next run --name web goes on with them.
  sandbox run --profile web -m 1G
      What web.toml says, but with another limit.
  sandbox run --detach --unit=web -p Restart=on-failure -- nginx -g 'daemon off;'
      In the background; `sandbox ps`, `sandbox logs web` and so on find it.
  sandbox run --dry-run -m 1G -- make
      What would be done, with every decision.

Exit status: the command's own; 128+n when signal n ended it; 125 when sandbox
itself failed and the command never ran, 126 when it cannot be executed, 127
when it was not found.";

// Flags of `sandbox run`.
#[derive(Debug, Args)]
#[command(max_term_width = 100, override_usage = USAGE, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) layer: Layer,
    /// A profile whose settings hold where no flag says otherwise
    ///
    /// A TOML file with the long flags as keys. A bare name is looked up as NAME.toml in ./, ~/.config/sandbox, /etc/sandbox and
    /// /usr/share/sandbox; a path has a / in it. `sandbox unit check NAME` shows what is in it.
    #[arg(long, value_name = "NAME|PATH", help_heading = "Unit")]
    profile: Option<String>,
    /// Show every decision, and start nothing
    #[arg(long, help_heading = "Look")]
    dry_run: bool,
    /// With --dry-run: print JSON
    #[arg(long, requires = "dry_run", help_heading = "Look")]
    json: bool,
    /// Say on standard error, at the end, what the time of the start was spent on
    #[arg(long, help_heading = "Look")]
    timings: bool,
}

/// Runs it.
pub(super) fn main(arguments: Arguments) -> Result<u8> {
    let quiet_end = arguments.dry_run;
    start(arguments).inspect_err(|error| {
        if !quiet_end {
            crate::part::service::failed(error);
        }
    })
}

fn check_entrypoint(layer: &Layer, image: Option<&ResolvedImage>) -> Result<()> {
    if image.is_none() && layer.entrypoint.is_some() {
        return Err(fault("--entrypoint stands for an image's, and there is no image").hint("--image REF").into());
    }
    Ok(())
}

fn start(arguments: Arguments) -> Result<u8> {
    let mut timings = Timings::begin(arguments.timings);
    let profile = arguments.profile.as_deref().map(Profile::load).transpose()?;
    let given = Provenance::new(&arguments.layer, profile.as_ref());
    let layer = match &profile {
        Some(profile) => profile.under(arguments.layer),
        None => arguments.layer,
    };
    let Choice { layer, image, kept } = kept::choose(layer)?;
    check_entrypoint(&layer, image.as_ref())?;
    let given = given.of(&layer, below(image.as_ref(), kept.as_ref()));
    let spec = Spec::from_layer(layer).map_err(|error| match &profile {
        Some(profile) => profile.blame(error),
        None => error,
    })?;
    let bus = if arguments.dry_run { None } else { unit::greet(&spec) };
    let mut host = Host::read()?;
    if let Some(service) = &host.service
        && (spec.unit.manager == Manager::None || !service.is_confirmed()?)
    {
        host.service = None;
    }
    host.read_network(&spec.network)?;
    let has_unit = spec.unit.manager != Manager::None && host.booted_by_systemd && host.service.is_none();
    let mut grace = if has_unit && !arguments.dry_run { Grace::begin() } else { None };
    if spec.root.source == RootSource::HostView {
        host.read_view()?;
    }
    let mut plan = Plan { given, ..Plan::new(&spec, &host)? };
    timings.mark("plan");
    if arguments.dry_run {
        return show(&plan, arguments.json);
    }
    sealed::before_start(&plan, &mut grace)?;
    for warning in &plan.warnings {
        log::warn!("{warning}");
    }
    if let Some(unit) = plan.unit.as_ref().filter(|unit| unit.kind == UnitKind::Service) {
        // The service takes the same locks.
        drop((image, kept));
        crate::detach::start(&spec, &host, &plan, unit)?;
        std::io::stdout().write_all(format!("{}\n", unit.name).as_bytes())?;
        return Ok(0);
    }
    let _reserved = reserve(&spec, &mut plan)?;
    // Not needed any more, but to give memory back takes time, and this is where a start waits for it.
    let _left = (spec, host);
    if let Some(kept) = &kept {
        kept.begin()?;
    }
    let plan = Arc::new(plan);
    let leases: Vec<_> = image.iter().filter_map(|image| image.lease.lock()).collect();
    let ended = crate::run::run(&plan, &leases, Begun { grace, bus }, &mut timings);
    if arguments.timings {
        std::io::stderr().write_all(timings.to_string().as_bytes())?;
    }
    let ended = ended?;
    if let Some(signal) = ended.signal
        && plan.unit.as_ref().is_some_and(|unit| matches!(unit.kind, UnitKind::Own { .. }))
    {
        // What systemd makes of it is the same as for a service without us: Restart=on-abnormal, no failure where it asked for the end.
        crate::sys::die_by(signal);
    }
    // What is left here has nothing to do at its end, and to give it all back takes longer than this process's end does.
    crate::sys::exit_now(ended.status)
}

/// What would be done.
fn show(plan: &Plan, json: bool) -> Result<u8> {
    let text = if json { format!("{:#}\n", serde_json::to_value(plan)?) } else { plan.to_string() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(0)
}

/// Sees that the ports to publish are free, and says which were picked.
fn reserve(spec: &Spec, plan: &mut Plan) -> Result<Reserved> {
    let reserved = plan.network.reserve()?;
    let picked = spec.network.publish.iter().zip(plan.network.published());
    for (_, publish) in picked.filter(|(asked, _)| asked.host_port == 0) {
        // Without a standard error there is nobody to tell; `sandbox ps` knows it.
        drop(std::io::stderr().write_all(format!("sandbox: published {publish}\n").as_bytes()));
    }
    Ok(reserved)
}

/// What settings come from that nobody wrote for this run.
fn below(image: Option<&ResolvedImage>, kept: Option<&Kept>) -> String {
    match (image, kept) {
        (Some(image), _) => format!("image {}", image.id),
        (None, Some(kept)) => format!("kept root {}", kept.name()),
        (None, None) => "default".to_owned(),
    }
}
