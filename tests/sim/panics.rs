//! Panics, wherever they are caught: none is allowed, so each is noted for the thread on which it happened.

use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static NOTED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// From now on panics are noted. They are not printed any more.
pub fn note() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            NOTED.with_borrow_mut(|noted| noted.push(panic.to_string()));
        }));
    });
}

/// What this thread's panics said since the last call.
#[must_use]
pub fn take() -> Vec<String> {
    NOTED.take()
}
