//! What a crash can leave, and that it is never less than what was confirmed.

use std::sync::Mutex;

use voter_mesh::log::{MARK_AT, RECORDS_AT, Verdict};

use super::watched::Watched;
use super::*;

const SEGMENT: &str = "log/0000000000000001.seg";

/// Pictures of the directory after each file operation that `deed` makes.
fn pictures(watched: &Watched, path: &Path, deed: impl FnOnce()) -> Vec<(&'static str, TempDir)> {
    let taken = Arc::new(Mutex::new(vec![("before", copied(path))]));
    let (into, path) = (Arc::clone(&taken), path.to_path_buf());
    watched.watch(move |what| {
        into.lock().unwrap().push((what, copied(&path)));
        Ok(())
    });
    deed();
    watched.stop();
    Arc::into_inner(taken).unwrap().into_inner().unwrap()
}

fn formed_watched() -> (Watched, TempDir, DataDir, Log) {
    let watched = Watched::default();
    let (temporary, dir, log) = formed_on(Arc::new(watched.clone()));
    (watched, temporary, dir, log)
}

/// Opens a picture, appends to it and opens it again; returns what it first held.
fn open_append_open(picture: &Path, term: u64) -> (LogRecovered, Vec<Run>) {
    let dir = DataDir::open(picture).unwrap();
    let (mut log, recovered, found) = recover(&dir).unwrap();
    let more = runs(*log.tail(), term, 12, 90);
    write(&mut log, &batch(term, &more));
    drop(log);
    let (_, again, all) = recover(&dir).unwrap();
    assert_eq!((all, again.verdict), ([found.as_slice(), &more].concat(), Verdict::Clean));
    (recovered, found)
}

#[test]
fn a_batch_torn_at_any_byte_leaves_what_was_before_it() {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 3, 20);
    write(&mut log, &batch(1, &written[..2]));
    let before = fs::read(temporary.path().join(SEGMENT)).unwrap();
    write(&mut log, &batch(1, &written[2..]));
    let after = fs::read(temporary.path().join(SEGMENT)).unwrap();
    drop((log, dir));
    let start = RECORDS_AT as usize + written[..2].iter().map(|run| run.bytes().len()).sum::<usize>();
    let length = written[2].bytes().len();
    for torn_at in 0..=length {
        let mut torn = before.clone();
        torn[start..start + torn_at].copy_from_slice(&after[start..start + torn_at]);
        fs::write(temporary.path().join(SEGMENT), torn).unwrap();
        let picture = copied(temporary.path());
        let (recovered, found) = open_append_open(picture.path(), 2);
        let kept = if torn_at == length { 3 } else { 2 };
        assert_eq!(found, written[..kept], "torn at {torn_at}");
        // The first bytes of a header may be zeros like those behind the end.
        let clean = after[start..start + torn_at].iter().all(|byte| *byte == 0);
        assert_eq!(recovered.verdict, if clean { Verdict::Clean } else { Verdict::Torn }, "torn at {torn_at}");
    }
}

#[test]
fn whichever_sectors_of_a_pass_reach_the_disk_nothing_confirmed_is_missing() {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 6, 200);
    write(&mut log, &batch(1, &written[..1]));
    let before = fs::read(temporary.path().join(SEGMENT)).unwrap();
    write(&mut log, &Batch { vote: OTHER, ..batch(2, &written[1..3]) });
    let after = fs::read(temporary.path().join(SEGMENT)).unwrap();
    drop((log, dir));
    let start = RECORDS_AT as usize + written[0].bytes().len();
    let changed: Vec<_> = (0..before.len() / 512).filter(|at| before[at * 512..][..512] != after[at * 512..][..512]).collect();
    assert!((3..=6).contains(&changed.len()), "{changed:?}");
    for subset in 0..1_u32 << changed.len() {
        let mut image = before.clone();
        for (_, at) in changed.iter().enumerate().filter(|(bit, _)| subset >> bit & 1 == 1) {
            image[at * 512..][..512].copy_from_slice(&after[at * 512..][..512]);
        }
        fs::write(temporary.path().join(SEGMENT), &image).unwrap();
        let picture = copied(temporary.path());
        let (recovered, found) = open_append_open(picture.path(), 3);
        assert!(!found.is_empty() && written.starts_with(&found), "{subset:b}");
        assert!(!recovered.vote_lost);
        let marked = image[MARK_AT[0] as usize..][..512] == after[MARK_AT[0] as usize..][..512];
        let expected = match (marked, found.len()) {
            (true, 3) => Verdict::Clean,
            (true, _) => Verdict::Doubtful,
            // The sector in which the batch begins is not there: nothing shows that there was one.
            (false, 1) if image[start..start + 64] == before[start..start + 64] => Verdict::Clean,
            (false, _) => Verdict::Torn,
        };
        assert_eq!(recovered.verdict, expected, "{subset:b}");
        assert_eq!((recovered.term, recovered.vote), if marked { (Term(2), OTHER) } else { (Term(1), RaftId::NONE) });
    }
}

#[test]
fn a_crash_at_any_step_of_a_cut_leaves_the_old_log_or_the_new_one() {
    for keep in [3, 4, 9, 18] {
        let (watched, temporary, _dir, mut log) = formed_watched();
        let old = runs(Tail::zero(&IDENTITY), 2, 18, 100);
        write(&mut log, &Batch { commit: RunIndex(3), ..batch(2, &old) });
        let kept = &old[..keep - 1];
        let new = runs(kept[keep - 2].header().tail(), 4, 9, 110);
        let cut = Batch { keep_through: Some(RunIndex(keep as u64)), ..batch(4, &new) };
        let pictures = pictures(&watched, temporary.path(), || write(&mut log, &cut));
        assert!(pictures.len() > 8);
        let whole = [kept, &new].concat();
        for (at, (step, picture)) in pictures.iter().enumerate() {
            let (recovered, found) = open_append_open(picture.path(), 5);
            assert!(
                found == old || (found.len() >= kept.len() && whole.starts_with(&found)),
                "keep {keep}, step {at} ({step}): {found:?}"
            );
            assert_ne!(recovered.verdict, Verdict::Suspect, "keep {keep}, step {at} ({step})");
        }
        assert_eq!(open_append_open(pictures.last().unwrap().1.path(), 6).1[..whole.len()], whole);
    }
}

#[test]
fn a_crash_at_any_step_of_an_install_leaves_the_old_log_or_the_new_one() {
    let (watched, temporary, _dir, mut log) = formed_watched();
    let old = runs(Tail::zero(&IDENTITY), 2, 18, 100);
    write(&mut log, &Batch { commit: RunIndex(3), ..batch(2, &old) });
    let far = runs(Tail::zero(&IDENTITY), 3, 50, 100)[49].header().tail();
    let new = runs(far, 4, 9, 100);
    let install = Batch { install: Some(far), commit: far.run, ..batch(4, &new) };
    for (at, (step, picture)) in pictures(&watched, temporary.path(), || write(&mut log, &install)).iter().enumerate() {
        let with_snapshot = copied(picture.path());
        let (_, found) = open_append_open(picture.path(), 5);
        assert!(found == old || new.starts_with(&found), "step {at} ({step}): {found:?}");

        // The snapshot itself was durable before: with it, every picture stands behind it.
        let dir = DataDir::open(with_snapshot.path()).unwrap();
        let mut seen = Vec::new();
        let (_, recovered) = Log::recover(&dir, IDENTITY, ID, Some(&far), SMALL, &mut |run| seen.push(run.clone())).unwrap();
        assert!(new.starts_with(&seen), "step {at} ({step})");
        assert!(recovered.tail.run >= far.run && recovered.verdict != Verdict::Suspect, "step {at} ({step})");
    }
}

#[test]
fn a_crash_at_any_step_of_rotating_and_trimming_loses_nothing_that_was_to_stay() {
    let (watched, temporary, _dir, mut log) = formed_watched();
    let written = runs(Tail::zero(&IDENTITY), 1, 30, 100);
    write(&mut log, &batch(1, &written[..20]));
    let pictures = pictures(&watched, temporary.path(), || {
        log.trim(RunIndex(17)).unwrap();
        write(&mut log, &batch(1, &written[20..]));
    });
    for (at, (step, picture)) in pictures.iter().enumerate() {
        let (recovered, found) = open_append_open(picture.path(), 2);
        let first = found[0].header().run.0 as usize;
        assert!(first <= 17 && found.len() >= 22 - first, "step {at} ({step}): {found:?}");
        assert!(written[first - 2..].starts_with(&found), "step {at} ({step}): {found:?}");
        assert_ne!(recovered.verdict, Verdict::Suspect, "step {at} ({step})");
    }
}

#[test]
fn a_crash_at_any_step_of_forming_leaves_nothing_that_hinders_the_next_attempt() {
    let (temporary, watched) = (temporary(), Watched::default());
    let dir = DataDir::open_on(Arc::new(watched.clone()), temporary.path(), DirectoryId([3; 16])).unwrap();
    let pictures = pictures(&watched, temporary.path(), || {
        Log::create(&dir, IDENTITY, ID, Tail::zero(&IDENTITY), SMALL).unwrap();
    });
    for (step, picture) in pictures {
        let dir = DataDir::open(picture.path()).unwrap();
        drop(Log::create(&dir, IDENTITY, OTHER, Tail::zero(&IDENTITY), SMALL).unwrap());
        assert_eq!(names(&picture.path().join("log")), ["0000000000000001.seg"], "{step}");
    }
}

#[test]
fn an_error_at_any_step_is_reported_and_costs_nothing_that_was_confirmed() {
    let zero = Tail::zero(&IDENTITY);
    let old = runs(zero, 2, 12, 100);
    let new = runs(old[5].header().tail(), 3, 12, 100);
    let far = runs(zero, 3, 40, 100)[39].header().tail();
    let last = runs(far, 3, 5, 100);
    // What is done, and what the log holds afterwards.
    let script: [(Batch, &[Run], Vec<Run>); 4] = [
        (batch(2, &old[..2]), &[], old[..2].to_vec()),
        (batch(2, &old[2..]), &old[..2], old.clone()),
        (Batch { keep_through: Some(RunIndex(7)), ..batch(3, &new) }, &old[..6], [&old[..6], &new].concat()),
        (Batch { install: Some(far), ..batch(3, &last) }, &[], last.clone()),
    ];
    let mut failures = 0;
    for fail_at in 0.. {
        let (watched, temporary, dir, mut log) = formed_watched();
        let mut steps = 0;
        watched.watch(move |_| {
            steps += 1;
            if steps > fail_at { Err(std::io::Error::from_raw_os_error(5)) } else { Ok(()) }
        });
        let mut confirmed: &[Run] = &[];
        let failed = script.iter().find(|(batch, _, after)| {
            let done = log.take(batch).is_ok() && log.sync().is_ok();
            if done {
                confirmed = after;
            }
            !done
        });
        watched.stop();
        drop((log, dir));
        let Some((_, base, after)) = failed else { break };
        failures += 1;
        let (recovered, found) = open_append_open(temporary.path(), 4);
        assert!(found == confirmed || (found.starts_with(base) && after.starts_with(&found)), "step {fail_at}: {found:?}");
        assert_ne!(recovered.verdict, Verdict::Suspect, "step {fail_at}");
    }
    assert!(failures > 20, "{failures}");
}
