//! The `bulk` connection of a link: one snapshot at a time in each direction, as `voter_mesh::mesh::bulk` has it, and beside it the
//! questions for runs.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::timeout;
use voter_mesh::mesh::bulk::{BulkFrame, CHUNK_BYTES_MAX, CREDIT_BYTES, ReceiveWindow, SnapshotOffer, TransferId, WindowError};
use voter_mesh::mesh::links::Ending;

use super::connection::{Connection, FrameError};
use super::link::{Link, SnapshotError};
use super::runs::Questions;
use super::{Inner, SinkFuture, SnapshotSource};
use crate::host::{Host, Stream, elsewhere};

/// Bytes that a sender reads at once.
const READ_BYTES: u64 = 256 << 10;

pub(super) struct Bulk {
    host: Rc<dyn Host>,
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
    /// Where the receiver wants it from.
    offset: Option<u64>,
    credit: u64,
    answer: Option<Result<(), String>>,
}

impl Sending {
    /// However much a peer gives, this side keeps no more than that waiting to be written.
    fn add(&mut self, credit: u64) {
        self.credit = self.credit.saturating_add(credit).min(CREDIT_BYTES);
    }
}

struct Receiving {
    transfer: TransferId,
    /// Once the owner has taken the offer.
    window: Option<ReceiveWindow>,
    /// What the sink has not had yet; bounded by the credit.
    arrived: Vec<Bytes>,
    /// Nothing comes any more.
    ended: bool,
    /// This has changed, or is gone.
    changed: Rc<Notify>,
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

/// Runs a `bulk` connection beside `link` until one of them ends.
pub(super) async fn run(inner: &Rc<Inner>, link: &Link, connection: Connection, stream: Stream, received: BytesMut) {
    let bulk = Rc::new(Bulk {
        host: Rc::clone(&inner.host),
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
    // Whoever runs this may drop it in the middle: the link's end does.
    let _guard = Ended { bulk: &bulk, link };
    tokio::select! {
        biased;
        _ = bulk.connection.run(stream, received, |frame| bulk.handle(BulkFrame::decode(frame)?, inner, link)) => {}
        () = link.ended() => {}
    }
}

/// Tells all who wait for something on a connection that it has ended.
struct Ended<'a> {
    bulk: &'a Rc<Bulk>,
    link: &'a Link,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let Self { bulk, link } = self;
        link.detach(bulk);
        bulk.ended.set(true);
        bulk.changed.notify_one();
        bulk.receiving.borrow_mut().take();
        bulk.questions.end();
    }
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
                let changed = Rc::default();
                let receiving = Receiving { transfer, window: None, arrived: Vec::new(), ended: false, changed };
                *self.receiving.borrow_mut() = Some(receiving);
                let peer = link.name();
                let sink = inner.owner.snapshot_begin(peer.seat, peer.incarnation, offer.clone());
                let bulk = Rc::clone(self);
                inner.spawn(async move {
                    let answer = match bulk.receive(transfer, offer.total, sink).await {
                        Ok(true) => BulkFrame::Done(transfer),
                        Ok(false) => return,
                        Err(reason) => BulkFrame::Refuse(transfer, reason),
                    };
                    bulk.receiving.borrow_mut().take_if(|receiving| receiving.transfer == transfer);
                    let _ = bulk.put(&answer);
                });
            }
            BulkFrame::Chunk(transfer, offset, bytes) => {
                let taken = self.change_receiving(transfer, |receiving| {
                    receiving.window.as_mut().ok_or(WindowError::Credit)?.receive(offset, bytes.len())?;
                    receiving.arrived.push(bytes);
                    receiving.changed.notify_one();
                    Ok::<_, WindowError>(())
                });
                taken.transpose()?;
            }
            BulkFrame::End(transfer) => {
                let ended = self.change_receiving(transfer, |receiving| {
                    receiving.ended = true;
                    receiving.changed.notify_one();
                    receiving.window.as_ref().ok_or(WindowError::Credit)?.end()
                });
                ended.transpose()?;
            }
            BulkFrame::Abort(transfer) => {
                self.receiving.borrow_mut().take_if(|receiving| receiving.transfer == transfer);
            }
            BulkFrame::Accept { transfer, credit, offset } => self.answered(transfer, |sending| {
                sending.offset.get_or_insert(offset);
                sending.add(credit);
            }),
            BulkFrame::Credit(transfer, credit) => {
                self.answered(transfer, |sending| sending.add(credit));
            }
            BulkFrame::Done(transfer) => self.answered(transfer, |sending| sending.answer = Some(Ok(()))),
            BulkFrame::Refuse(transfer, reason) => self.answered(transfer, |sending| sending.answer = Some(Err(reason))),
            BulkFrame::FetchRuns(question, first, last) => self.runs_asked(question, first, last, inner, link),
            BulkFrame::Runs(question, runs) => self.questions.answered(question, Ok(runs)),
            BulkFrame::NoRuns(question, why) => self.questions.answered(question, Err(why)),
        }
        Ok(())
    }

    /// Changes the transfer that is being received, if it is this one; frames of another are late and mean nothing.
    fn change_receiving<T>(&self, transfer: TransferId, change: impl FnOnce(&mut Receiving) -> T) -> Option<T> {
        self.receiving.borrow_mut().as_mut().filter(|receiving| receiving.transfer == transfer).map(change)
    }

    /// Takes one snapshot in; false if it was taken back, or replaced by the next.
    async fn receive(&self, transfer: TransferId, total: u64, sink: SinkFuture) -> Result<bool, String> {
        let mut sink = sink.await?;
        let offset = sink.offset();
        let taken = self.change_receiving(transfer, |receiving| receiving.window = Some(ReceiveWindow::new(total, offset)));
        if taken.is_none() {
            return Ok(false);
        }
        let _ = self.put(&BulkFrame::Accept { transfer, credit: CREDIT_BYTES, offset });
        loop {
            let next = self.change_receiving(transfer, |receiving| {
                (std::mem::take(&mut receiving.arrived), receiving.ended, Rc::clone(&receiving.changed))
            });
            match next {
                None => return Ok(false),
                Some((chunks, ended, changed)) if chunks.is_empty() => {
                    if ended {
                        return sink.finish().await.map(|()| true);
                    }
                    changed.notified().await;
                }
                Some((chunks, ..)) => {
                    let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum();
                    sink = sink.write(chunks).await?;
                    let credit = self.change_receiving(transfer, |receiving| receiving.window.as_mut()?.consume(bytes)).flatten();
                    if let Some(credit) = credit {
                        let _ = self.put(&BulkFrame::Credit(transfer, credit));
                    }
                }
            }
        }
    }

    fn answered(&self, transfer: TransferId, change: impl FnOnce(&mut Sending)) {
        if let Some(sending) = self.sending.borrow_mut().as_mut().filter(|sending| sending.transfer == transfer) {
            change(sending);
            self.changed.notify_one();
        }
    }

    /// Sends one snapshot.
    pub(super) async fn send(&self, offer: SnapshotOffer, from: Arc<dyn SnapshotSource>) -> Result<(), SnapshotError> {
        if self.sending.borrow().is_some() {
            return Err(SnapshotError::Busy);
        }
        self.transfers.set(self.transfers.get().wrapping_add(1));
        let (transfer, total) = (TransferId(self.transfers.get()), offer.total);
        *self.sending.borrow_mut() = Some(Sending { transfer, offset: None, credit: 0, answer: None });
        let _guard = TakeBack { bulk: self, transfer };
        self.put(&BulkFrame::Begin(transfer, offer))?;
        let mut offset = self.wait_for(|sending| sending.offset).await?;
        if offset > total {
            return Err(SnapshotError::Refused(format!("it claims {offset} bytes of {total}")));
        }
        while offset < total {
            let credit = self.wait_for(|sending| (sending.credit > 0).then_some(sending.credit)).await?;
            let size = credit.min(total - offset).min(READ_BYTES);
            let source = Arc::clone(&from);
            let read = elsewhere(&*self.host, move || source.read(offset, size as usize)).await;
            let mut bytes = read.map_err(io::Error::other)??;
            if bytes.len() as u64 != size {
                return Err(SnapshotError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            self.answered(transfer, |sending| sending.credit -= size);
            while !bytes.is_empty() {
                let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES_MAX));
                let at = offset;
                offset += chunk.len() as u64;
                self.put(&BulkFrame::Chunk(transfer, at, chunk))?;
            }
        }
        self.put(&BulkFrame::End(transfer))?;
        self.wait(|sending| sending.answer.clone()).await?.map_err(SnapshotError::Refused)
    }

    /// Waits for something that comes before the receiver's last word; that word is an error here.
    async fn wait_for<T>(&self, look: impl Fn(&Sending) -> Option<T>) -> Result<T, SnapshotError> {
        let found = self.wait(|sending| match &sending.answer {
            Some(answer) => Some(Err(answer.clone().err().unwrap_or_else(|| "done before the end".into()))),
            None => look(sending).map(Ok),
        });
        found.await?.map_err(SnapshotError::Refused)
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
