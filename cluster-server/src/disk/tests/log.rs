use voter_mesh::log::{Fenced, Verdict, empty_tail};

use super::*;

#[test]
fn what_was_written_is_there_again_across_rotation() {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 3, 40, 100);
    for three in written.chunks(3) {
        write(&mut log, &Batch { vote: OTHER, commit: three[0].header().run, ..batch(3, three) });
    }
    assert!(names(&temporary.path().join("log")).len() > 5, "it rotated");
    assert_eq!(log.reader().read(RunIndex(2), RunIndex(100), usize::MAX).unwrap(), written);
    drop(log);

    let (mut log, recovered, found) = recover(&dir).unwrap();
    assert_eq!(found, written);
    assert_eq!(log.reader().read(RunIndex(2), RunIndex(100), usize::MAX).unwrap(), written);
    let tail = written[39].header().tail();
    assert_eq!(
        recovered,
        LogRecovered {
            term: Term(3),
            vote: OTHER,
            commit: written[39].header().run,
            before_first: (RunIndex(1), Term(1)),
            terms: vec![(RunIndex(2), Term(3))],
            tail,
            verdict: Verdict::Clean,
            must_reach: None,
            vote_lost: false,
        }
    );

    let more = runs(tail, 4, 3, 100);
    write(&mut log, &batch(4, &more));
    drop(log);
    let (_, recovered, found) = recover(&dir).unwrap();
    assert_eq!(found, [written, more].concat());
    assert_eq!(recovered.terms, [(RunIndex(2), Term(3)), (RunIndex(42), Term(4))]);
}

#[test]
fn a_run_larger_than_a_segment_gets_a_segment_of_its_own() {
    let (_temporary, dir, mut log) = formed();
    let small = runs(Tail::zero(&IDENTITY), 1, 1, 100);
    let large = runs(small[0].header().tail(), 1, 3, 700_000);
    let last = runs(large[2].header().tail(), 1, 1, 100);
    let all = [small, large, last].concat();
    write(&mut log, &batch(1, &all));
    drop(log);
    let (log, recovered, found) = recover(&dir).unwrap();
    assert_eq!((found, recovered.verdict), (all.clone(), Verdict::Clean));
    for (first, count) in [(2, 5), (3, 4), (5, 2)] {
        assert_eq!(log.reader().read(RunIndex(first), RunIndex(9), usize::MAX).unwrap(), all[5 - count..]);
    }
    assert_eq!(log.reader().read(RunIndex(3), RunIndex(9), 1).unwrap(), all[1..2], "at least one");
}

#[test]
fn a_vote_is_durable_and_a_commit_index_alone_is_not_written() {
    let (temporary, dir, mut log) = formed();
    write(&mut log, &Batch { vote: OTHER, must_sync: true, ..batch(7, &[]) });
    let image = copied(temporary.path());
    write(&mut log, &Batch { vote: OTHER, commit: RunIndex(1), ..batch(7, &[]) });
    let segment = "log/0000000000000001.seg";
    assert_eq!(fs::read(image.path().join(segment)).unwrap(), fs::read(temporary.path().join(segment)).unwrap());
    drop(log);
    let (_, recovered, _) = recover(&dir).unwrap();
    assert_eq!((recovered.term, recovered.vote, recovered.verdict), (Term(7), OTHER, Verdict::Clean));
}

#[test]
fn a_current_leader_may_overwrite_a_higher_terms_uncommitted_tail_and_a_deposed_one_nothing() {
    let (_temporary, dir, mut log) = formed();
    let agreed = runs(Tail::zero(&IDENTITY), 3, 3, 100);
    let base = agreed[2].header().tail();
    write(&mut log, &Batch { commit: RunIndex(3), ..batch(5, &[agreed.as_slice(), &runs(base, 5, 3, 100)].concat()) });

    // The leader of term 6 has a run of term 4 where this log has one of term 5.
    let mut new = runs(base, 4, 1, 100);
    new.extend(runs(new[0].header().tail(), 6, 1, 100));
    write(&mut log, &Batch { keep_through: Some(RunIndex(4)), ..batch(6, &new) });
    let expected = [agreed, new].concat();
    assert_eq!(log.reader().read(RunIndex(2), RunIndex(99), usize::MAX).unwrap(), expected);

    let refused = |log: &mut Log| {
        let next = runs(*log.tail(), 6, 1, 100);
        let deposed = Batch { writer_term: Term(5), ..batch(6, &next) };
        assert!(matches!(log.take(&deposed), Err(WriteFailed::Fenced(Fenced::Deposed { durable: Term(6), writer: Term(5) }))));
        let fallen = batch(5, &next);
        assert!(matches!(log.take(&fallen), Err(WriteFailed::Fenced(Fenced::TermFell { .. }))));
        let cut = Batch { keep_through: Some(RunIndex(2)), ..batch(6, &[]) };
        assert!(matches!(
            log.take(&cut),
            Err(WriteFailed::Fenced(Fenced::Committed { commit: RunIndex(3), keep_through: RunIndex(2) }))
        ));
        let stale = Batch { install: Some(Tail::zero(&IDENTITY)), ..batch(6, &[]) };
        assert!(matches!(log.take(&stale), Err(WriteFailed::Fenced(Fenced::Committed { .. }))));
        let gap = batch(6, &runs(next[0].header().tail(), 6, 1, 100));
        assert!(matches!(log.take(&gap), Err(WriteFailed::NotNext { .. })));
        log.sync().unwrap();
        assert_eq!(log.reader().read(RunIndex(2), RunIndex(99), usize::MAX).unwrap(), expected, "nothing changed");
    };
    refused(&mut log);
    drop(log);
    let (mut log, recovered, found) = recover(&dir).unwrap();
    assert_eq!((found.clone(), recovered.verdict), (expected.clone(), Verdict::Clean));
    refused(&mut log);
}

#[test]
fn trimming_drops_whole_segments_unless_pinned_and_their_files_are_used_again() {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 60, 100);
    for run in &written {
        write(&mut log, &batch(1, std::slice::from_ref(run)));
    }
    let reader = log.reader();
    assert_eq!(reader.range(), (RunIndex(2), RunIndex(61)));
    let pin = reader.pin(RunIndex(12)).unwrap();
    let (first, term_before) = log.trim(RunIndex(40)).unwrap();
    assert!(first <= RunIndex(12) && first > RunIndex(6), "{first}");
    assert_eq!(term_before, Term(1));
    drop(pin);
    let (first, _) = log.trim(RunIndex(40)).unwrap();
    assert!(first <= RunIndex(40) && first > RunIndex(34), "{first}");
    assert!(reader.pin(RunIndex(12)).is_none());
    assert!(matches!(reader.read(RunIndex(12), RunIndex(20), 1), Err(ReadError::Trimmed { first: says }) if says == first));
    assert_eq!(reader.read(first, RunIndex(99), usize::MAX).unwrap(), written[first.0 as usize - 2..]);
    assert!(reader.trim_point(RunIndex(61), 1000) < reader.trim_point(RunIndex(61), 0).next());
    assert_eq!(reader.trim_point(RunIndex(61), u64::MAX), first);

    let spares = |temporary: &TempDir| names(&temporary.path().join("log")).iter().filter(|name| name.ends_with("spare")).count();
    assert_eq!(spares(&temporary), 2);
    let more = runs(*log.tail(), 1, 20, 100);
    for run in &more {
        write(&mut log, &batch(1, std::slice::from_ref(run)));
    }
    assert_eq!(spares(&temporary), 0, "used again");
    drop(log);
    let (_, recovered, found) = recover(&dir).unwrap();
    assert_eq!(found, [&written[first.0 as usize - 2..], &more].concat());
    assert_eq!((recovered.before_first, recovered.verdict), ((first.previous(), Term(1)), Verdict::Clean));
}

#[test]
fn an_installed_snapshot_restarts_the_log_behind_it() {
    let (temporary, dir, mut log) = formed();
    write(&mut log, &Batch { commit: RunIndex(10), ..batch(2, &runs(Tail::zero(&IDENTITY), 2, 20, 100)) });
    let far = runs(Tail::zero(&IDENTITY), 3, 50, 100)[49].header().tail();
    let after = runs(far, 4, 3, 100);
    write(&mut log, &Batch { install: Some(far), commit: far.run, ..batch(4, &after) });
    assert_eq!(names(&temporary.path().join("log")).len(), 1, "what it voids is gone");
    assert_eq!(log.reader().range(), (far.run.next(), after[2].header().run));
    drop(log);

    let (mut log, recovered, found) = recover(&dir).unwrap();
    assert_eq!((found, recovered.verdict, recovered.commit), (after.clone(), Verdict::Clean, far.run));
    assert_eq!((recovered.before_first, recovered.terms), ((far.run, far.term), vec![(far.run.next(), Term(4))]));
    let tail = *log.tail();
    write(&mut log, &batch(4, &runs(tail, 4, 20, 100)));
    let (first, _) = log.trim(RunIndex(65)).unwrap();
    drop(log);
    let (_, recovered, found) = recover(&dir).unwrap();
    assert_eq!((found[0].header().run, recovered.verdict), (first, Verdict::Clean));
}

#[test]
fn a_log_that_a_durable_snapshot_has_overtaken_restarts_behind_it() {
    let open = |dir: &DataDir, snapshot: Tail| {
        let mut seen = Vec::new();
        Log::recover(dir, IDENTITY, ID, Some(&snapshot), SMALL, &mut |run, _| seen.push(run.header().run))
            .map(|(_, recovered)| (recovered, seen))
    };
    let (_temporary, dir, mut log) = formed();
    let own = runs(Tail::zero(&IDENTITY), 2, 20, 100);
    write(&mut log, &Batch { commit: RunIndex(10), vote: OTHER, ..batch(2, &own) });
    drop(log);

    let (recovered, seen) = open(&dir, own[12].header().tail()).unwrap();
    assert_eq!(seen, own[13..].iter().map(|run| run.header().run).collect::<Vec<_>>(), "only what follows it");
    assert_eq!(recovered.tail, own[19].header().tail());

    let elsewhere = runs(Tail::zero(&IDENTITY), 1, 20, 99);
    assert!(matches!(open(&dir, elsewhere[5].header().tail()), Err(DiskError::Diverged { run: RunIndex(7) })));

    let ahead = runs(Tail::zero(&IDENTITY), 3, 40, 100)[39].header().tail();
    let (recovered, seen) = open(&dir, ahead).unwrap();
    assert_eq!((recovered.tail, recovered.before_first, seen.len()), (ahead, (ahead.run, ahead.term), 0));
    // Its leader's term has begun, and this server has voted for nobody in it.
    assert_eq!((recovered.term, recovered.vote, recovered.commit), (Term(3), RaftId::NONE, RunIndex(10)));
    assert!(matches!(open(&dir, own[12].header().tail()), Err(DiskError::Gap { first: RunIndex(42), .. })));
}

#[test]
fn a_newcomers_log_begins_empty_and_an_abandoned_one_is_replaced() {
    let temporary = temporary();
    let dir = DataDir::open(temporary.path()).unwrap();
    assert!(matches!(recover(&dir), Err(DiskError::NoLog { .. })));
    let empty = empty_tail(&IDENTITY);
    drop(Log::create(&dir, Identity { cluster: ClusterId([1; 16]), ..IDENTITY }, ID, empty, SMALL).unwrap());
    let mut log = Log::create(&dir, IDENTITY, ID, empty, SMALL).unwrap();
    write(&mut log, &Batch { must_sync: true, ..batch(3, &[]) });
    drop(log);
    let (mut log, recovered, _) = recover(&dir).unwrap();
    assert_eq!((recovered.tail, recovered.term, recovered.before_first), (empty, Term(3), (RunIndex(0), Term(0))));
    let snapshot = Tail::zero(&IDENTITY);
    write(&mut log, &Batch { install: Some(snapshot), commit: snapshot.run, ..batch(3, &runs(snapshot, 3, 2, 10)) });
    drop(log);
    assert!(matches!(Log::create(&dir, IDENTITY, ID, empty, SMALL), Err(DiskError::LogExists { .. })));
    assert_eq!(recover(&dir).unwrap().2.len(), 2);
}
