//! Any message to either end.

use std::os::fd::AsFd;

use super::{MAX, ParentEnd, ToChild, ToParent, pair, send};

/// A message with and without a descriptor: each end takes it for what it is and says the same when it sends it on, or refuses it.
/// None that is longer than any of ours is taken for its beginning.
pub(crate) fn messages(bytes: &[u8]) {
    let Some((with_descriptor, message)) = bytes.split_first() else { return };
    if message.is_empty() {
        return;
    }
    let Ok((parent, child)) = pair() else { return };
    let descriptor = (with_descriptor % 2 == 1).then(|| parent.as_fd());
    let sent = send(&parent.0, message, descriptor).and_then(|()| send(&child.0, message, descriptor));
    sent.unwrap_or_else(|error| panic!("{error}"));
    if let Ok(Some(received)) = child.receive() {
        assert!(message.len() <= MAX, "{received:?}");
        to_child(&parent, &received, || child.receive().ok().flatten());
    }
    if let Ok(Some(received)) = parent.receive() {
        assert!(message.len() <= MAX, "{received:?}");
        child.send(&received).unwrap_or_else(|error| panic!("{error}"));
        let again = parent.receive().ok().flatten();
        match (&received, &again) {
            (ToParent::Failed(one), Some(ToParent::Failed(other))) if !fits(one) => {
                assert_eq!(one.status, other.status)
            }
            _ => assert_eq!(again.as_ref().map(shape), Some(shape(&received))),
        }
    }
}

fn to_child(parent: &ParentEnd, received: &ToChild, next: impl FnOnce() -> Option<ToChild>) {
    parent.send(received).unwrap_or_else(|error| panic!("{error}"));
    match (received, next()) {
        (ToChild::Failed(one), Some(ToChild::Failed(other))) if !fits(one) => assert_eq!(one.status, other.status),
        (_, again) => assert_eq!(again.as_ref().map(shape), Some(shape(received))),
    }
}

/// Whether a failure is sent without being cut.
fn fits(failure: &super::Failure) -> bool {
    failure.message.len() + failure.hint.len() + 3 <= MAX
}

/// A message but for the number that its descriptor has.
fn shape(message: &impl std::fmt::Debug) -> String {
    let text = format!("{message:?}");
    text.split("OwnedFd").next().unwrap_or_default().to_owned()
}
