//! Keys that a group of clients works on, one after the other, so that no history grows long.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;

/// The key of the moment.
#[derive(Debug)]
pub(super) struct Keys {
    group: u32,
    epoch: u32,
    calls: u32,
    calls_max: u32,
}

impl Keys {
    pub(super) fn shared(group: u32, calls_max: u32) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self { group, epoch: 1, calls: 0, calls_max }))
    }

    /// The key for one more call.
    pub(super) fn next(&mut self) -> Bytes {
        self.calls += 1;
        if self.calls > self.calls_max {
            (self.epoch, self.calls) = (self.epoch + 1, 1);
        }
        format!("g{}.{}", self.group, self.epoch).into()
    }
}
