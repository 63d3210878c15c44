//! `sandbox image`: the image store's commands.

pub(super) mod print;
pub(super) mod progress;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand, ValueEnum};

use crate::error::{Result, fault};
use crate::image::export::{self, Export};
use crate::image::manifest::Platform;
use crate::image::progress::Progress;
use crate::image::pull::{self, Credentials};
use crate::image::reference::Reference;
use crate::image::store::{Removed, Report, Store};
use crate::image::view::{self, Row};
use crate::image::{self, Arrived, Roots, Wanted, clock};
use print::{print_json, print_table, show, size, table};

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct ImageArgs {
    /// The store to use, instead of /var/lib/sandbox (root) or $XDG_DATA_HOME/sandbox
    #[arg(long, value_name = "DIR", global = true)]
    store: Option<PathBuf>,
    /// Print JSON on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Print no progress, and of results only IDs
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Bring images in from a file or a directory
    ///
    /// SOURCE may be a docker archive (`docker save`, `podman save`, skopeo), an OCI layout (a directory or a tar), the tar
    /// of a root file system (plain or with gzip, zstd or xz), or a directory with a root file system in it; what it is
    /// is found by looking. `-` reads standard input: `docker save web | sandbox image import -`.
    ///
    /// Archives bring names along; what has none is named after its file.
    Import {
        /// File or directory
        source: PathBuf,
        /// The name to give it, instead of the one it brings
        #[arg(long, value_name = "NAME[:TAG]")]
        tag: Option<Reference>,
        #[command(flatten)]
        platform: PlatformArg,
    },
    /// Bring an image in from a registry
    ///
    /// Several layers are fetched at once; an interrupted pull goes on where it stopped. Credentials come from --creds, else
    /// from ~/.docker/config.json (credential helpers included) or podman's auth.json. Plain http is used only with a
    /// registry on this machine (localhost, 127.0.0.0/8, ::1).
    Pull {
        /// Its name; without a registry in it, Docker's own
        name: Reference,
        #[command(flatten)]
        platform: PlatformArg,
        /// User and password; `-` reads them from standard input, where other users cannot see them
        #[arg(long, value_name = "USER:PASSWORD")]
        creds: Option<String>,
    },
    /// List images
    ///
    /// SIZE is the length of all files in an image's layers, SHARED what of it other images have in common with it.
    Ls,
    /// Show how an image is run and where its layers are
    ///
    /// The table is the walk from the image's ID to directories: the config lists a diff ID for each layer, the digest of
    /// its tar; a diff ID and the chain below it make a chain ID; the chain ID names the directory.
    Inspect {
        /// Names or IDs
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Where Docker keeps its data, for docker:NAME
        #[arg(long, value_name = "DIR")]
        docker_root: Option<PathBuf>,
    },
    /// Give an image another name
    Tag {
        /// Name or ID
        image: String,
        /// The new name; if another image has it, it loses it
        name: Reference,
    },
    /// Write images into a file or a directory
    ///
    /// The file is an OCI layout and a docker archive at once: `docker load`, `podman load` and skopeo (`oci-archive:`,
    /// `docker-archive:`) take it. Blobs are what came in, byte for byte.
    Export {
        /// Names or IDs
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Where to; `-` is standard output
        #[arg(long, short, value_name = "FILE|DIR")]
        output: PathBuf,
        /// What to write
        #[arg(long, value_enum, default_value_t = Format::Archive)]
        format: Format,
    },
    /// Check every byte of the store
    ///
    /// Hashes all blobs, follows all names, and compares every unpacked layer with the archive that it came from: owners,
    /// modes, times, attributes, contents. Changes nothing. Ends with status 1 when something is wrong.
    Verify,
    /// Take images or names of images away
    ///
    /// With its last name an image goes too, unless a sandbox runs on it; an ID takes the image with all its names.
    Rm {
        /// Names or IDs
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Remove what nothing needs
    ///
    /// Images that have neither a name nor a running sandbox, layers and blobs of no image, and what interrupted imports and
    /// pulls have left. Waits until imports that are under way have ended.
    Gc,
}

#[derive(Debug, Args)]
struct PlatformArg {
    /// Of an image with variants take this one, instead of this machine's
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = Platform::parse)]
    platform: Option<Platform>,
}

impl PlatformArg {
    fn get(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::this_machine)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One tar, OCI layout and docker archive at once
    Archive,
    /// An OCI layout in a new directory
    OciDir,
}

/// Runs the command; gives the exit status.
pub(crate) fn main(args: &ImageArgs) -> Result<u8> {
    let docker_root = match &args.command {
        Command::Inspect { docker_root, .. } => docker_root.clone(),
        _ => None,
    };
    let roots = Roots::new(args.store.clone(), docker_root)?;
    if let Command::Inspect { images, .. } = &args.command {
        return inspect(args, &roots, images);
    }
    let store = Store::open(&roots.store)?;
    let progress = progress::shown(args.quiet);
    match &args.command {
        Command::Import { source, tag, platform } => {
            let wanted = Wanted { tag: tag.clone(), platform: platform.get() };
            arrived(args, &image::import(&store, source, &wanted, &*progress)?)
        }
        Command::Pull { name, platform, creds } => {
            let creds = creds.as_deref().map(Credentials::from_argument).transpose()?;
            arrived(args, &[pull::pull(&store, name, &platform.get(), creds, &*progress)?])
        }
        Command::Ls => list(args, &view::list(&store, &store.lock_shared()?)?),
        Command::Tag { image, name } => tag(args, &store, image, name),
        Command::Export { images, output, format } => write_out(&store, images, output, *format, &*progress),
        Command::Verify => verified(args, &store.verify(&store.lock_shared()?, &*progress)?),
        Command::Rm { images } => remove(args, &store, images, &*progress),
        Command::Gc => {
            let lock = store.lock_exclusive(|| progress.note("waiting for imports that are under way"))?;
            removed(args, &store.gc(&lock)?)
        }
        Command::Inspect { .. } => Ok(0),
    }
}

fn arrived(args: &ImageArgs, images: &[Arrived]) -> Result<u8> {
    if args.json {
        return print_json(&images);
    }
    let mut out = io::stdout().lock();
    for image in images {
        if args.quiet {
            writeln!(out, "{}", image.id)?;
            continue;
        }
        let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
        writeln!(
            out,
            "{}  {}, {} layers, {} of them new",
            names.join(", "),
            image.id.short(),
            image.layers,
            image.unpacked
        )?;
        if image.skipped > 0 {
            writeln!(out, "  {} device nodes or attributes were left out, as only root can make them", image.skipped)?;
        }
    }
    Ok(0)
}

fn list(args: &ImageArgs, rows: &[Row]) -> Result<u8> {
    if args.json {
        return print_json(&rows);
    }
    if args.quiet {
        let mut out = io::stdout().lock();
        for row in rows {
            writeln!(out, "{}", row.id)?;
        }
        return Ok(0);
    }
    let now = SystemTime::now();
    let mut table = table(&["NAME", "ID", "LAYERS", "SIZE", "SHARED", "CREATED"], &[2, 3, 4]);
    for row in rows {
        let name = row.name.as_ref().map_or_else(|| "<none>".to_string(), Reference::familiar);
        let created =
            row.created.as_deref().and_then(clock::parse).map_or_else(String::new, |then| clock::ago(then, now));
        table.add_row([name, row.id.short(), row.layers.to_string(), size(row.size), size(row.shared_size), created]);
    }
    print_table(&table)
}

fn inspect(args: &ImageArgs, roots: &Roots, images: &[String]) -> Result<u8> {
    let mut all = Vec::new();
    for typed in images {
        let image = image::resolve(typed, roots)?;
        let store = if image::is_foreign(typed) { None } else { Some(Store::open(&roots.store)?) };
        all.push(view::details(&image, store.as_ref())?);
    }
    if args.json {
        return print_json(&all);
    }
    for details in &all {
        if args.quiet {
            writeln!(io::stdout(), "{}", details.id)?;
        } else {
            show(details)?;
        }
    }
    Ok(0)
}

fn tag(args: &ImageArgs, store: &Store, typed: &str, name: &Reference) -> Result<u8> {
    let writer = store.writer()?;
    let (_, target) = store.find(typed)?;
    writer.put_reference(name, &target)?;
    if args.json {
        return print_json(&serde_json::json!({ "name": name, "id": target.image }));
    }
    Ok(0)
}

fn write_out(store: &Store, images: &[String], output: &Path, format: Format, progress: &dyn Progress) -> Result<u8> {
    let lock = store.lock_shared()?;
    let mut exports = Vec::new();
    let mut leases = Vec::new();
    for typed in images {
        let (name, target) = store.find(typed)?;
        leases.push(store.lease(&target.image, &lock)?);
        exports.push(Export { name, target });
    }
    let named = |error: &dyn std::fmt::Display| fault(format!("{}: {error}", output.display()));
    if format == Format::OciDir {
        export::to_directory(store, &exports, output, progress)?;
    } else if output.as_os_str() == "-" {
        if io::stdout().is_terminal() {
            return Err(fault("an archive is not written to a terminal").hint("--output FILE").into());
        }
        export::to_archive(store, &exports, BufWriter::with_capacity(256 << 10, io::stdout().lock()), progress)?;
    } else if output.is_dir() {
        return Err(named(&"is a directory").hint("for an OCI layout in a directory: --format=oci-dir").into());
    } else {
        // Half an archive is never found under its name.
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(parent)
            .map_err(|error| named(&error))?;
        export::to_archive(store, &exports, BufWriter::with_capacity(256 << 10, file.as_file()), progress)?;
        file.persist(output).map_err(|error| named(&error.error))?;
    }
    Ok(0)
}

fn verified(args: &ImageArgs, report: &Report) -> Result<u8> {
    let status = u8::from(!report.problems.is_empty());
    if args.json {
        print_json(report)?;
        return Ok(status);
    }
    let mut out = io::stdout().lock();
    for problem in &report.problems {
        writeln!(out, "{problem}")?;
    }
    if !args.quiet {
        writeln!(
            out,
            "{} images, {} layers, {} blobs: {}",
            report.images,
            report.layers,
            report.blobs,
            if status == 0 { "all right" } else { "see above" }
        )?;
    }
    Ok(status)
}

fn remove(args: &ImageArgs, store: &Store, images: &[String], progress: &dyn Progress) -> Result<u8> {
    let lock = store.lock_exclusive(|| progress.note("waiting for imports that are under way"))?;
    let mut all = Removed::default();
    for typed in images {
        let (name, target) = store.find(typed)?;
        let by_name = name.filter(|name| store.target(name).is_ok_and(|target| target.is_some()));
        let one = match by_name {
            Some(name) => store.remove_reference(&name, &lock)?.unwrap_or_default(),
            None => store.remove_image(&target.image, &lock)?,
        };
        all.references.extend(one.references);
        all.images.extend(one.images);
        all.layers.extend(one.layers);
        all.blobs.extend(one.blobs);
        all.bytes += one.bytes;
    }
    removed(args, &all)
}

fn removed(args: &ImageArgs, removed: &Removed) -> Result<u8> {
    if args.json {
        return print_json(removed);
    }
    if args.quiet {
        return Ok(0);
    }
    let mut out = io::stdout().lock();
    for name in &removed.references {
        writeln!(out, "name   {}", name.familiar())?;
    }
    for id in &removed.images {
        writeln!(out, "image  {}", id.short())?;
    }
    writeln!(
        out,
        "{} layers and {} blobs removed, {} freed",
        removed.layers.len(),
        removed.blobs.len(),
        size(removed.bytes)
    )?;
    Ok(0)
}
