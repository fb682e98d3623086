//! The `bulk` connection of a link: one snapshot at a time in each direction, as `voter_mesh::mesh::bulk` has it, and beside it the
//! questions for runs.

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use voter_mesh::mesh::bulk::{BulkFrame, CHUNK_BYTES_MAX, CREDIT_BYTES, ReceiveWindow, SnapshotOffer, TransferId};
use voter_mesh::mesh::links::Ending;

use super::connection::{Connection, FrameError};
use super::link::{Link, SnapshotError};
use super::runs::Questions;
use super::{Inner, SnapshotSink};

pub(super) struct Bulk {
    connection: Connection,
    transfers: Cell<u32>,
    sending: RefCell<Option<Sending>>,
    /// `sending` has changed, or the connection has ended. One sender waits at most.
    changed: Notify,
    ended: Cell<bool>,
    receiving: RefCell<Option<Receiving>>,
    pub(super) questions: Questions,
    stall: Duration,
}

struct Sending {
    transfer: TransferId,
    credit: u64,
    answer: Option<Result<(), String>>,
}

struct Receiving {
    transfer: TransferId,
    window: ReceiveWindow,
    sink: Box<dyn SnapshotSink>,
}

/// Runs a `bulk` connection beside `link` until one of them ends.
pub(super) async fn run(inner: &Rc<Inner>, link: &Link, connection: Connection, stream: TcpStream, received: BytesMut) {
    let bulk = Rc::new(Bulk {
        connection,
        transfers: Cell::new(0),
        sending: RefCell::default(),
        changed: Notify::new(),
        ended: Cell::new(false),
        receiving: RefCell::default(),
        questions: Questions::default(),
        stall: Duration::from_millis(inner.options.limits.snapshot_stall_ms),
    });
    link.attach(&bulk);
    tokio::select! {
        _ = bulk.connection.run(stream, received, |frame| bulk.handle(BulkFrame::decode(frame)?, inner, link)) => {}
        () = link.ended() => {}
    }
    link.detach(&bulk);
    bulk.ended.set(true);
    bulk.changed.notify_one();
    bulk.receiving.borrow_mut().take();
    bulk.questions.end();
}

impl Bulk {
    pub(super) fn close(&self) {
        self.connection.close(Ending::Ours);
    }

    pub(super) fn put(&self, frame: &BulkFrame) -> Result<(), SnapshotError> {
        // Credit keeps the outbox far below its limits: a refused frame means that the connection has ended.
        self.connection.send(|pieces| frame.encode(pieces)).map_err(|_| SnapshotError::Unlinked)
    }

    fn handle(self: &Rc<Self>, frame: BulkFrame, inner: &Rc<Inner>, link: &Link) -> Result<(), FrameError> {
        match frame {
            BulkFrame::Begin(transfer, offer) => {
                self.receiving.borrow_mut().take();
                let window = ReceiveWindow::new(offer.total);
                let peer = link.name();
                let answer = match inner.owner.snapshot_begin(peer.seat, peer.incarnation, offer) {
                    Ok(sink) => {
                        *self.receiving.borrow_mut() = Some(Receiving { transfer, window, sink });
                        BulkFrame::Accept(transfer, CREDIT_BYTES)
                    }
                    Err(reason) => BulkFrame::Refuse(transfer, reason),
                };
                let _ = self.put(&answer);
            }
            BulkFrame::Chunk(transfer, offset, bytes) => {
                let Some(mut receiving) = self.take_receiving(transfer) else { return Ok(()) };
                let credit = receiving.window.receive(offset, bytes.len())?;
                match receiving.sink.chunk(offset, bytes) {
                    Ok(()) => {
                        *self.receiving.borrow_mut() = Some(receiving);
                        if let Some(credit) = credit {
                            let _ = self.put(&BulkFrame::Credit(transfer, credit));
                        }
                    }
                    Err(reason) => drop(self.put(&BulkFrame::Refuse(transfer, reason))),
                }
            }
            BulkFrame::End(transfer) => {
                let Some(receiving) = self.take_receiving(transfer) else { return Ok(()) };
                receiving.window.end()?;
                let (bulk, finished) = (Rc::clone(self), receiving.sink.finish());
                inner.spawn(async move {
                    let answer = match finished.await {
                        Ok(()) => BulkFrame::Done(transfer),
                        Err(reason) => BulkFrame::Refuse(transfer, reason),
                    };
                    let _ = bulk.put(&answer);
                });
            }
            BulkFrame::Abort(transfer) => drop(self.take_receiving(transfer)),
            BulkFrame::Accept(transfer, credit) | BulkFrame::Credit(transfer, credit) => {
                self.answered(transfer, |sending| sending.credit = sending.credit.saturating_add(credit));
            }
            BulkFrame::Done(transfer) => self.answered(transfer, |sending| sending.answer = Some(Ok(()))),
            BulkFrame::Refuse(transfer, reason) => self.answered(transfer, |sending| sending.answer = Some(Err(reason))),
            BulkFrame::FetchRuns(question, first, last) => self.runs_asked(question, first, last, inner, link),
            BulkFrame::Runs(question, runs) => self.questions.answered(question, Ok(runs)),
            BulkFrame::NoRuns(question, why) => self.questions.answered(question, Err(why)),
        }
        Ok(())
    }

    /// The transfer that is being received, if it is this one; frames of another are late and mean nothing.
    fn take_receiving(&self, transfer: TransferId) -> Option<Receiving> {
        self.receiving.borrow_mut().take_if(|receiving| receiving.transfer == transfer)
    }

    fn answered(&self, transfer: TransferId, change: impl FnOnce(&mut Sending)) {
        if let Some(sending) = self.sending.borrow_mut().as_mut().filter(|sending| sending.transfer == transfer) {
            change(sending);
            self.changed.notify_one();
        }
    }

    /// Sends one snapshot.
    pub(super) async fn send(&self, offer: SnapshotOffer, mut from: impl Read) -> Result<(), SnapshotError> {
        if self.sending.borrow().is_some() {
            return Err(SnapshotError::Busy);
        }
        self.transfers.set(self.transfers.get().wrapping_add(1));
        let (transfer, total) = (TransferId(self.transfers.get()), offer.total);
        *self.sending.borrow_mut() = Some(Sending { transfer, credit: 0, answer: None });
        let _guard = TakeBack { bulk: self, transfer };
        self.put(&BulkFrame::Begin(transfer, offer))?;
        let mut offset = 0;
        while offset < total {
            let credit = self.wait(|sending| match &sending.answer {
                Some(answer) => Some(Err(answer.clone().err().unwrap_or_else(|| "done before the end".into()))),
                None => (sending.credit > 0).then_some(Ok(sending.credit)),
            });
            let credit = credit.await?.map_err(SnapshotError::Refused)?;
            let size = credit.min(total - offset).min(CHUNK_BYTES_MAX as u64);
            let mut bytes = BytesMut::zeroed(size as usize);
            from.read_exact(&mut bytes)?;
            self.answered(transfer, |sending| sending.credit -= size);
            self.put(&BulkFrame::Chunk(transfer, offset, bytes.freeze()))?;
            offset += size;
            // A heartbeat may be due.
            tokio::task::yield_now().await;
        }
        self.put(&BulkFrame::End(transfer))?;
        self.wait(|sending| sending.answer.clone()).await?.map_err(SnapshotError::Refused)
    }

    /// Waits until `look` finds something in the transfer's state.
    async fn wait<T>(&self, look: impl Fn(&Sending) -> Option<T>) -> Result<T, SnapshotError> {
        let found = async {
            loop {
                if let Some(found) = self.sending.borrow().as_ref().and_then(&look) {
                    return Ok(found);
                }
                if self.ended.get() {
                    return Err(SnapshotError::Unlinked);
                }
                self.changed.notified().await;
            }
        };
        timeout(self.stall, found).await.unwrap_or(Err(SnapshotError::Stalled))
    }
}

/// Ends a transfer, however its sender leaves.
struct TakeBack<'a> {
    bulk: &'a Bulk,
    transfer: TransferId,
}

impl Drop for TakeBack<'_> {
    fn drop(&mut self) {
        let sending = self.bulk.sending.borrow_mut().take();
        if sending.is_some_and(|sending| sending.answer.is_none()) {
            let _ = self.bulk.put(&BulkFrame::Abort(self.transfer));
        }
    }
}
