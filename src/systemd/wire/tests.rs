use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

const CALL: Call<'_> = Call { destination: "a.b", path: "/a", interface: "a.b", member: "M" };

/// A server that reads what it must before it answers with `bytes` in pieces of `piece`.
fn served(bytes: Vec<u8>, piece: usize) -> Exchange<(Wire, std::thread::JoinHandle<io::Result<UnixStream>>)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut greeting = vec![0; GREETING.len()];
        stream.read_exact(&mut greeting)?;
        for piece in bytes.chunks(piece) {
            stream.write_all(piece)?;
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(stream)
    });
    let address = SocketAddrUnix::new(&path)?;
    Ok((Wire::connect(&address, false)?, server))
}

/// A signal as a server sends it.
pub(in super::super) fn signal_of<B: Serialize + DynamicType>(member: &str, body: &B) -> Vec<u8> {
    let message = Message::signal("/a", "a.b", member).serial(NonZeroU32::MIN).build(body);
    message.map(|message| message.data().bytes().to_vec()).unwrap_or_default()
}

/// The answer to the call of that number as a server sends it.
pub(in super::super) fn answer<B: Serialize + DynamicType>(serial: NonZeroU32, body: &B) -> Vec<u8> {
    let call = Message::method_call("/a", "M").serial(serial).build(&());
    let message = call.and_then(|call| Message::method_return(&call.header()).serial(serial).build(body));
    message.map(|message| message.data().bytes().to_vec()).unwrap_or_default()
}

/// Reads the next call on the server's side: its number, its method and all its bytes.
pub(in super::super) fn next_call(
    stream: &mut UnixStream,
    buffer: &mut Vec<u8>,
) -> Option<(NonZeroU32, String, Vec<u8>)> {
    loop {
        if let Some((incoming, length)) = parse(buffer).ok()? {
            let bytes: Vec<u8> = buffer.drain(..length).collect();
            let serial = u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
            return Some((NonZeroU32::new(serial)?, incoming.member?, bytes));
        }
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).ok().filter(|length| *length > 0)?;
        buffer.extend_from_slice(chunk.get(..length)?);
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

#[test]
fn messages_arrive_whole_in_any_pieces() -> Exchange<()> {
    for piece in [1, 7, 4096] {
        let mut bytes = b"DATA\r\nOK 1234\r\nAGREE_UNIX_FD\r\n".to_vec();
        bytes.extend(signal_of("First", &(1u32, "one")));
        bytes.extend(signal_of("Second", &(2u32, "two")));
        let (mut wire, server) = served(bytes, piece)?;
        for (name, want) in [("First", (1, "one")), ("Second", (2, "two"))] {
            let incoming = wire.receive(soon())?;
            assert!(incoming.is_signal(name));
            assert_eq!(incoming.body::<(u32, String)>()?, (want.0, want.1.to_owned()));
            assert!(incoming.body::<(String,)>().is_err(), "another signature is no match");
        }
        drop(server);
    }
    Ok(())
}

#[test]
fn what_goes_along_is_in_front_of_a_call_or_behind_it() -> Exchange<()> {
    for (order, want) in [(Order::Before, ["Along", "M"]), (Order::Behind, ["M", "Along"])] {
        let (mut wire, server) = served(b"DATA\r\nOK 1\r\nAGREE_UNIX_FD\r\n".to_vec(), 4096)?;
        wire.send_along(&Call { member: "Along", ..CALL }, &("rule",), order)?;
        wire.send(&CALL, &())?;
        let mut stream = server.join().map_err(|_| Failure::Broken("the server panicked".to_owned()))??;
        let mut buffer = Vec::new();
        let mut next = || next_call(&mut stream, &mut buffer).map(|(_, member, _)| member);
        assert_eq!([next(), next()], want.map(|member| Some(member.to_owned())), "{order:?}");
    }
    Ok(())
}

#[test]
fn trouble_is_told_apart() -> Exchange<()> {
    let (mut wire, _server) = served(b"REJECTED EXTERNAL\r\n".to_vec(), 100)?;
    assert!(matches!(wire.receive(soon()), Err(Failure::Broken(why)) if why.contains("REJECTED")));

    let (mut wire, _server) = served(b"DATA\r\nOK 1\r\nERROR\r\n".to_vec(), 100)?;
    let deadline = Deadline::after(Duration::from_millis(50));
    assert!(matches!(wire.call::<_, ()>(&CALL, &(), deadline), Err(Failure::Timeout(_))));

    let (mut wire, server) = served(b"DATA\r\nOK 1\r\nERROR\r\nnonsense nonsense".to_vec(), 100)?;
    assert!(matches!(wire.receive(soon()), Err(Failure::Broken(_))));
    drop(server.join());
    assert!(matches!(wire.call::<_, ()>(&CALL, &(), soon()), Err(Failure::Broken(_))));
    Ok(())
}

#[test]
fn a_daemon_that_is_full_has_done_nothing() -> Exchange<()> {
    let call = Message::method_call("/a", "M").serial(NonZeroU32::MIN).build(&())?;
    let full = Message::error(&call.header(), "a.b.LimitsExceeded").serial(NonZeroU32::MIN).build(&("full",))?;
    let bytes = [b"DATA\r\nOK 1\r\nAGREE_UNIX_FD\r\n", full.data().bytes()].concat();
    let (mut wire, _server) = served(bytes, 4096)?;
    // As if a bus daemon were there and the first call had been Hello.
    wire.hello = Some(1);
    let failure = wire.call::<_, ()>(&CALL, &(), soon()).err();
    assert!(
        failure.is_some_and(
            |failure| wire.was_refused(&failure) && matches!(failure, Failure::Broken(why) if why == "full")
        )
    );
    Ok(())
}

#[test]
fn an_error_message_is_a_remote_failure() {
    let serial = NonZeroU32::MIN;
    let call = Message::method_call("/a", "M").serial(serial).build(&());
    let error = call.and_then(|call| Message::error(&call.header(), "a.b.Bad").serial(serial).build(&("too bad",)));
    let bytes = error.map(|error| error.data().bytes().to_vec()).unwrap_or_default();
    let parsed = parse(&bytes).ok().flatten().map(|(incoming, length)| {
        assert!(incoming.answers(1) && length == bytes.len());
        incoming.body::<()>()
    });
    assert!(
        matches!(parsed, Some(Err(Failure::Remote { name, message })) if name == "a.b.Bad" && message == "too bad")
    );
    for cut in 0..bytes.len() {
        assert!(matches!(parse(bytes.get(..cut).unwrap_or_default()), Ok(None)), "cut at {cut}");
    }
}
