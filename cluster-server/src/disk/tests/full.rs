//! A disk without room: the log waits, changes nothing meanwhile, and goes on at the same place.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use voter_mesh::log::Verdict;

use super::watched::Watched;
use super::*;
use crate::host::OsHost;

const PATIENCE: Duration = Duration::from_secs(20);

fn formed_watched() -> (Watched, TempDir, DataDir, Log) {
    let watched = Watched::default();
    let (temporary, dir, log) = formed_on(Arc::new(watched.clone()));
    (watched, temporary, dir, log)
}

/// Does it until there is room.
fn again<E: Into<WriteFailed>>(mut deed: impl FnMut() -> Result<(), E>) {
    while let Err(error) = deed().map_err(Into::into) {
        assert!(matches!(&error, WriteFailed::Disk(error) if error.is_full()), "{error}");
    }
}

/// Batches with rotation, a vote, a cut, an install, and reserves between them; what the log then holds, and its end.
fn life(log: &mut Log) -> (Vec<Run>, Tail) {
    let old = runs(Tail::zero(&IDENTITY), 2, 24, 100);
    let kept = &old[..9];
    let new = runs(kept[8].header().tail(), 4, 12, 110);
    let far = runs(new[11].header().tail(), 5, 7, 90);
    let last = runs(far[6].header().tail(), 6, 14, 100);
    let batches = [
        batch(2, &old[..5]),
        batch(2, &old[5..]),
        Batch { vote: OTHER, must_sync: true, ..batch(3, &[]) },
        Batch { keep_through: Some(kept[8].header().run), ..batch(4, &new) },
        Batch { install: Some(far[6].header().tail()), commit: far[6].header().run, ..batch(6, &last[..6]) },
        Batch { commit: last[8].header().run, ..batch(6, &last[6..]) },
    ];
    for batch in &batches {
        again(|| log.take(batch));
        again(|| log.sync());
        again(|| log.reserve());
    }
    (last.clone(), last[13].header().tail())
}

#[test]
fn wherever_room_runs_out_and_however_often_the_log_goes_on_and_nothing_is_missing() {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::ReadOnlyFilesystem];
    let mut refused_ever = 0;
    for times in [1, 3] {
        for nth in 0.. {
            let (watched, _temporary, dir, mut log) = formed_watched();
            let (seen, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let count = Arc::clone(&refused);
            watched.refuse(move |what| {
                let at = if what.starts_with("sync") { return Ok(()) } else { seen.fetch_add(1, Ordering::Relaxed) };
                // The operation is tried again, and so is refused again, until its times are over.
                if at < nth || at >= nth + times {
                    return Ok(());
                }
                count.fetch_add(1, Ordering::Relaxed);
                Err(kinds[nth as usize % 3].into())
            });
            let (held, tail) = life(&mut log);
            watched.stop();
            assert_eq!(*log.tail(), tail);
            drop(log);
            let (_, recovered, found) = recover(&dir).unwrap();
            assert_eq!((recovered.tail, recovered.verdict), (tail, Verdict::Clean), "refused at {nth}");
            assert_eq!((recovered.term, recovered.commit), (Term(6), held[8].header().run));
            assert!(found == held, "refused at {nth}");
            refused_ever += refused.load(Ordering::Relaxed);
            if refused.load(Ordering::Relaxed) == 0 {
                break;
            }
        }
    }
    assert!(refused_ever > 200, "{refused_ever}");
}

#[test]
fn a_sync_that_fails_for_want_of_room_is_a_failed_sync() {
    for what in ["sync", "sync directory"] {
        let (watched, _temporary, _dir, mut log) = formed_watched();
        watched.refuse(move |step| if step == what { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) });
        let written = runs(Tail::zero(&IDENTITY), 1, 30, 100);
        log.take(&batch(1, &written)).unwrap();
        let error = log.sync().unwrap_err();
        assert!(!error.is_full(), "{error}");
    }
}

#[test]
fn the_next_segment_is_made_ahead_so_that_votes_and_half_a_segment_have_room_on_a_full_disk() {
    let (watched, temporary, dir, mut log) = formed_watched();
    let written = runs(Tail::zero(&IDENTITY), 1, 40, 100);
    watched.refuse(|what| if what == "allocate" { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) });
    let mut taken = 0;
    while log.reserve().is_ok() {
        write(&mut log, &batch(1, &written[taken..=taken]));
        taken += 1;
    }
    assert_eq!(names(&temporary.path().join("log")), ["0000000000000001.seg"], "nothing is left of the attempt");
    // A vote needs no room, and runs have the rest of the segment.
    write(&mut log, &Batch { vote: OTHER, must_sync: true, ..batch(2, &[]) });
    let before = taken;
    let voted = |runs: &[Run]| Batch { vote: OTHER, ..batch(2, runs) };
    let full = loop {
        log.take(&voted(&written[taken..=taken])).unwrap();
        match log.sync() {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(full.is_full() && taken > before, "{full}");
    assert!(log.take(&voted(&written[taken + 1..taken + 2])).is_err(), "one behind the other");
    assert_eq!(log.reader().range().1, written[taken - 1].header().run, "what is not durable is not readable");
    watched.stop();
    log.sync().unwrap();
    write(&mut log, &voted(&written[taken + 1..]));
    drop(log);
    let (_, recovered, found) = recover(&dir).unwrap();
    assert_eq!((recovered.term, recovered.verdict), (Term(2), Verdict::Clean));
    assert!(found == written);
}

fn spawn(log: Log, limits: WriterLimits) -> (LogWriter, Receiver<LogEvent>) {
    let (to, from) = sync_channel(1024);
    (LogWriter::start(log, limits, &OsHost::new(), move |event| drop(to.send(event))).unwrap(), from)
}

/// A disk that has no room for another file while it is full.
fn scarce() -> (Arc<AtomicBool>, Watched, TempDir, DataDir, Log) {
    let (watched, temporary, dir, log) = formed_watched();
    let full = Arc::new(AtomicBool::new(false));
    let is_full = Arc::clone(&full);
    watched.refuse(move |what| {
        let refused = what == "allocate" && is_full.load(Ordering::Relaxed);
        if refused { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    (full, watched, temporary, dir, log)
}

#[test]
fn a_writer_without_room_says_so_once_keeps_a_bounded_queue_and_goes_on_when_there_is_some() {
    let (full, _watched, _temporary, dir, log) = scarce();
    full.store(true, Ordering::Relaxed);
    let (writer, events) = spawn(log, WriterLimits { batches_max: 8, bytes_max: 1 << 20 });
    let written = runs(Tail::zero(&IDENTITY), 1, 60, 100);
    let submit = |taken: &mut usize| {
        while *taken < 60 && writer.submit(Batch { number: *taken as u64 + 1, ..batch(1, &written[*taken..=*taken]) }).is_ok() {
            *taken += 1;
        }
    };
    let (mut taken, mut durable, mut told_full) = (0, 0, 0);
    submit(&mut taken);
    while let Ok(event) = events.recv_timeout(Duration::from_millis(if told_full == 0 { 20_000 } else { 2_500 })) {
        match event {
            LogEvent::Written { number } => durable = number,
            LogEvent::Full { why } => {
                assert!(why.contains("0000000000000002"), "{why}");
                told_full += 1;
            }
            event => panic!("{event:?}"),
        }
        submit(&mut taken);
    }
    assert_eq!(told_full, 1);
    // At most the one pass that is stuck and the queue.
    assert!(durable < 10 && (8..=18).contains(&(taken as u64 - durable)), "{taken} {durable}");
    full.store(false, Ordering::Relaxed);
    let (mut told_room, mut freed) = (0, false);
    while durable < 60 || told_room == 0 {
        match events.recv_timeout(PATIENCE).unwrap() {
            LogEvent::Written { number } => durable = number,
            LogEvent::Room => told_room += 1,
            event => panic!("{event:?}"),
        }
        freed |= durable > 20;
        submit(&mut taken);
    }
    assert!(freed);
    assert_eq!(told_room, 1);
    drop(events);
    writer.close();
    assert!(recover(&dir).unwrap().2 == written);
}

#[test]
fn a_writer_learns_of_a_full_disk_while_a_vote_still_has_its_place() {
    let (full, _watched, _temporary, dir, log) = scarce();
    full.store(true, Ordering::Relaxed);
    let (writer, events) = spawn(log, WriterLimits::default());
    let written = runs(Tail::zero(&IDENTITY), 1, 60, 100);
    for (number, run) in written.iter().enumerate() {
        writer.submit(Batch { number: number as u64 + 1, ..batch(1, std::slice::from_ref(run)) }).unwrap();
        assert!(matches!(events.recv_timeout(PATIENCE).unwrap(), LogEvent::Written { .. }), "stuck before it was said");
        if matches!(events.recv_timeout(Duration::from_millis(50)), Ok(LogEvent::Full { .. })) {
            break;
        }
    }
    writer.submit(Batch { number: 100, vote: OTHER, must_sync: true, ..batch(2, &[]) }).unwrap();
    assert!(matches!(events.recv_timeout(PATIENCE).unwrap(), LogEvent::Written { number: 100 }));
    drop(events);
    writer.close();
    let (_, recovered, _) = recover(&dir).unwrap();
    assert_eq!((recovered.term, recovered.vote), (Term(2), OTHER));
}

#[test]
fn trimming_makes_room_for_what_waits_and_never_goes_below_a_pin() {
    let (full, _watched, _temporary, dir, log) = scarce();
    let (writer, events) = spawn(log, WriterLimits::default());
    let reader = writer.reader();
    let written = runs(Tail::zero(&IDENTITY), 1, 60, 100);
    let until = |number: u64| loop {
        match events.recv_timeout(PATIENCE).unwrap() {
            LogEvent::Written { number: told } if told >= number => break,
            LogEvent::Failed(failed) => panic!("{failed}"),
            _ => {}
        }
    };
    writer.submit(Batch { number: 1, ..batch(1, &written[..30]) }).unwrap();
    until(1);
    full.store(true, Ordering::Relaxed);
    let pin = reader.pin(RunIndex(2)).unwrap();
    writer.submit(Batch { number: 2, ..batch(1, &written[30..]) }).unwrap();
    while !matches!(events.recv_timeout(PATIENCE).unwrap(), LogEvent::Full { .. }) {}
    // Somebody still reads there.
    writer.trim(RunIndex(25));
    assert!(matches!(events.recv_timeout(PATIENCE).unwrap(), LogEvent::Trimmed { first: RunIndex(2), .. }));
    drop(pin);
    // Of what goes, two files are kept to be overwritten; the rest of what waits needs more than these.
    writer.trim(RunIndex(25));
    let LogEvent::Trimmed { first, .. } = events.recv_timeout(PATIENCE).unwrap() else { panic!("trimming waits for room") };
    assert!(first > RunIndex(2) && first <= RunIndex(25));
    full.store(false, Ordering::Relaxed);
    until(2);
    drop(events);
    writer.close();
    let (_, recovered, found) = recover(&dir).unwrap();
    assert_eq!(recovered.before_first.0.next(), first);
    assert!(written.ends_with(&found) && found.len() >= 36);
}

#[test]
fn a_writer_that_is_closed_without_room_ends_and_has_confirmed_nothing_that_is_not_durable() {
    let (full, _watched, _temporary, dir, log) = scarce();
    full.store(true, Ordering::Relaxed);
    let (writer, events) = spawn(log, WriterLimits::default());
    let written = runs(Tail::zero(&IDENTITY), 1, 60, 100);
    for (number, run) in written.iter().enumerate() {
        writer.submit(Batch { number: number as u64 + 1, ..batch(1, std::slice::from_ref(run)) }).unwrap();
    }
    let mut durable = 0;
    loop {
        match events.recv_timeout(PATIENCE).unwrap() {
            LogEvent::Written { number } => durable = number,
            LogEvent::Full { .. } => break,
            event => panic!("{event:?}"),
        }
    }
    writer.close();
    let found = recover(&dir).unwrap().2;
    assert!(found.len() as u64 >= durable && found.len() < 60 && written.starts_with(&found));
}
