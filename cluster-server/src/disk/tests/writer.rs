use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use voter_mesh::log::Fenced;

use super::watched::Watched;
use super::*;
use crate::host::OsHost;

const PATIENCE: Duration = Duration::from_secs(20);

fn spawn(log: Log, limits: WriterLimits) -> (LogWriter, Receiver<LogEvent>) {
    let (to, from) = sync_channel(0);
    // A rendezvous: the writer waits until the test has heard each event.
    (LogWriter::start(log, limits, &OsHost::new(), move |event| drop(to.send(event))).unwrap(), from)
}

#[test]
fn what_waits_is_written_under_one_sync_and_read_while_the_log_is_trimmed() {
    let (_temporary, dir, log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 60, 100);
    let (writer, events) = spawn(log, WriterLimits::default());
    let reader = writer.reader();
    for (number, run) in written.iter().enumerate() {
        writer.submit(Batch { number: number as u64 + 1, ..batch(1, std::slice::from_ref(run)) }).unwrap();
    }
    let mut told = 0;
    let mut heard = 0;
    while told < 60 {
        let LogEvent::Written { number } = events.recv_timeout(PATIENCE).unwrap() else { panic!("only batches wait") };
        assert!(number > told);
        (told, heard) = (number, heard + 1);
        assert_eq!(reader.read(RunIndex(2), RunIndex(number + 1), usize::MAX).unwrap(), written[..number as usize]);
    }
    assert!(heard < 60, "batches shared syncs");
    writer.trim(RunIndex(30));
    writer.trim(RunIndex(20));
    let mut event = events.recv_timeout(PATIENCE).unwrap();
    if let LogEvent::Trimmed { first, .. } = event
        && first <= RunIndex(20)
    {
        panic!("the highest counts: {event:?}");
    }
    while !matches!(event, LogEvent::Trimmed { first, term_before: Term(1) } if first > RunIndex(20)) {
        event = events.recv_timeout(PATIENCE).unwrap();
    }
    drop(events);
    writer.close();
    let (_, recovered, _) = recover(&dir).unwrap();
    assert_eq!(recovered.tail, written[59].header().tail());
}

#[test]
fn a_writer_that_waits_for_its_owner_takes_only_so_much() {
    let (_temporary, _dir, log) = formed();
    let (writer, events) = spawn(log, WriterLimits { batches_max: 4, bytes_max: 1000 });
    let written = runs(Tail::zero(&IDENTITY), 1, 100, 100);
    let mut taken = 0;
    let refused = loop {
        match writer.submit(Batch { number: taken, ..batch(1, &written[taken as usize..][..1]) }) {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused.0, refused.1.number), (SubmitRefused::Full, taken));
    assert!(taken <= 9, "at most one pass under way and one queue: {taken}");
    while !matches!(events.recv_timeout(PATIENCE).unwrap(), LogEvent::Written { number } if number + 1 == taken) {}
    writer.submit(*refused.1).unwrap();
    assert!(matches!(events.recv_timeout(PATIENCE).unwrap(), LogEvent::Written { number } if number == taken));
}

#[test]
fn a_refused_batch_stops_the_writer_after_what_came_before_it_is_durable() {
    let (_temporary, dir, log) = formed();
    let (writer, events) = spawn(log, WriterLimits::default());
    let written = runs(Tail::zero(&IDENTITY), 5, 2, 100);
    writer.submit(Batch { number: 1, ..batch(5, &written[..1]) }).unwrap();
    writer.submit(Batch { number: 2, writer_term: Term(4), ..batch(5, &written[1..]) }).unwrap();
    assert!(matches!(events.recv_timeout(PATIENCE).unwrap(), LogEvent::Written { number: 1 }));
    let event = events.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(event, LogEvent::Failed(WriteFailed::Fenced(Fenced::Deposed { .. }))), "{event:?}");
    assert!(matches!(writer.submit(batch(5, &written[1..])), Err((SubmitRefused::Stopped, _))));
    drop(writer);
    assert_eq!(recover(&dir).unwrap().2, written[..1]);
}

#[test]
fn a_sync_that_fails_is_not_tried_again_and_nothing_under_it_is_confirmed_or_read() {
    let watched = Watched::default();
    let (_temporary, _dir, log) = formed_on(Arc::new(watched.clone()));
    let syncs = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&syncs);
    watched.refuse(move |what| match what {
        "sync" if seen.fetch_add(1, Ordering::Relaxed) == 0 => Err(io::ErrorKind::Other.into()),
        _ => Ok(()),
    });
    let (writer, events) = spawn(log, WriterLimits::default());
    let (reader, written) = (writer.reader(), runs(Tail::zero(&IDENTITY), 1, 2, 100));
    writer.submit(Batch { number: 1, ..batch(1, &written[..1]) }).unwrap();
    let event = events.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(event, LogEvent::Failed(WriteFailed::Disk(_))), "{event:?}");
    assert!(matches!(writer.submit(batch(1, &written[1..])), Err((SubmitRefused::Stopped, _))));
    assert!(events.recv_timeout(PATIENCE).is_err(), "it was the last word");
    assert_eq!((reader.range().1, syncs.load(Ordering::Relaxed)), (RunIndex(1), 1));
}
