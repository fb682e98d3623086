//! Holes: damage in the midst of a log, what is read around it, and how it is filled again.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use voter_mesh::log::{RECORDS_AT, Verdict};

use super::*;

/// A log of 40 runs in several segments, each batch confirmed by the next, and where each run stands.
fn rotated() -> (TempDir, DataDir, Vec<Run>, Vec<(PathBuf, u64)>) {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 40, 60);
    for run in &written {
        write(&mut log, &batch(1, std::slice::from_ref(run)));
    }
    drop(log);
    let mut places = Vec::new();
    for name in names(&temporary.path().join("log")) {
        let path = temporary.path().join("log").join(name);
        let bytes = fs::read(&path).unwrap();
        let mut at = RECORDS_AT as usize;
        while let Some(run) = written.get(places.len()).filter(|run| bytes[at..].starts_with(run.bytes())) {
            places.push((path.clone(), at as u64));
            at += run.bytes().len();
        }
    }
    assert_eq!(places.len(), written.len());
    assert_eq!(places.iter().map(|(path, _)| path).collect::<std::collections::BTreeSet<_>>().len(), 8, "segments");
    (temporary, dir, written, places)
}

fn overwrite((path, at): &(PathBuf, u64), bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, *at).unwrap();
}

fn look(dir: &DataDir, snapshot: Option<&Tail>) -> (LogLook, Vec<Run>) {
    let mut runs = Vec::new();
    let look = Log::look(dir, IDENTITY, ID, snapshot, SMALL, &mut |run, _| runs.push(run.clone())).unwrap();
    (look, runs)
}

/// What `look` found missing, by the places of the first and the last run, and what it reads of the rest.
fn missing(look: &LogLook) -> Vec<(u64, Option<u64>)> {
    look.damage().iter().map(|damage| (damage.first.0 - 2, damage.hole.map(|hole| hole.last().0 - 2))).collect()
}

#[test]
fn whatever_byte_of_a_confirmed_run_is_bad_it_is_a_hole_and_filled_again() {
    let (_temporary, dir, written, places) = rotated();
    for (number, (run, place)) in written.iter().zip(&places).enumerate().take(38) {
        // Every byte of one of them, some of all others.
        for at in (0..run.bytes().len()).step_by(if number == 7 { 1 } else { 29 }) {
            let mut bad = run.bytes().to_vec();
            bad[at] ^= 1 << (at % 8);
            overwrite(place, &bad);
            let (found, seen) = look(&dir, None);
            assert_eq!(missing(&found), [(number as u64, Some(number as u64))], "run {number}, byte {at}");
            assert_eq!((seen.as_slice(), found.recovered().verdict), (&written[..number], Verdict::Suspect));
            assert!(!found.damage()[0].fill(&written[number + 1..][..1]).unwrap(), "another run is not it");
            assert!(found.damage()[0].fill(std::slice::from_ref(run)).unwrap());
            if at % 29 == 0 {
                let (_, recovered, runs) = recover(&dir).unwrap();
                assert_eq!((runs, recovered.verdict), (written.clone(), Verdict::Clean), "run {number}, byte {at}");
            }
        }
    }
}

#[test]
fn all_good_parts_of_a_log_with_many_holes_are_read_and_nothing_else() {
    let (_temporary, dir, written, places) = rotated();
    let bad = [3, 4, 5, 11, 12, 20, 37];
    for number in bad {
        overwrite(&(places[number].0.clone(), places[number].1 + 30), &[0; 40]);
    }
    let (found, _) = look(&dir, None);
    assert_eq!(missing(&found), [(3, Some(4)), (5, Some(5)), (11, Some(12)), (20, Some(20)), (37, Some(37))]);
    let reader = found.reader();
    for (number, run) in written.iter().enumerate() {
        let read = reader.read(run.header().run, run.header().run, usize::MAX);
        assert_eq!(read.ok(), (!bad.contains(&number)).then(|| vec![run.clone()]), "run {number}");
    }
    let from = |number: usize| reader.read(written[number].header().run, RunIndex(u64::MAX), usize::MAX).unwrap();
    assert_eq!(from(6), written[6..11], "up to the next hole");

    // Opened as it is, it ends before the first hole.
    let (log, recovered) = found.open().unwrap();
    assert_eq!((recovered.tail, recovered.verdict), (written[2].header().tail(), Verdict::Suspect));
    assert_eq!(recovered.must_reach, Some(written[39].header().tail()));
    assert_eq!(log.reader().read(RunIndex(2), RunIndex(u64::MAX), usize::MAX).unwrap(), written[..3]);
}

#[test]
fn a_lost_segment_in_the_midst_is_a_hole_too() {
    let (_temporary, dir, written, places) = rotated();
    let lost = &places[12].0;
    let first = places.iter().position(|(path, _)| path == lost).unwrap();
    let last = places.iter().rposition(|(path, _)| path == lost).unwrap();
    fs::remove_file(lost).unwrap();
    let (found, _) = look(&dir, None);
    assert_eq!(missing(&found), [(first as u64, Some(last as u64))]);
    assert!(found.damage()[0].fill(&written[first..=last]).unwrap());
    let (_, recovered, runs) = recover(&dir).unwrap();
    assert_eq!((runs, recovered.verdict), (written, Verdict::Clean));
}

#[test]
fn a_fill_that_a_crash_cuts_short_leaves_a_hole_that_can_be_filled() {
    let (_temporary, dir, written, places) = rotated();
    let hole: Vec<u8> = written[6..9].iter().flat_map(|run| run.bytes().to_vec()).collect();
    for cut in (0..hole.len()).step_by(7) {
        overwrite(&places[6], &vec![0x55; hole.len()]);
        overwrite(&places[6], &hole[..cut]);
        let (found, _) = look(&dir, None);
        let [damage] = found.damage() else { panic!("one hole: {:?}", missing(&found)) };
        assert!(damage.fill(&written[damage.first.0 as usize - 2..9]).unwrap(), "cut at {cut}");
        assert_eq!(recover(&dir).unwrap().2, written);
    }
}

#[test]
fn a_lost_end_is_damage_without_a_far_side_and_an_unconfirmed_one_is_none() {
    let (_temporary, dir, written, places) = rotated();
    overwrite(&places[39], &[9; 100]);
    let (found, _) = look(&dir, None);
    assert_eq!((missing(&found), found.recovered().verdict), (vec![], Verdict::Doubtful));
    for place in &places[37..] {
        overwrite(place, &[9; 100]);
    }
    let (found, seen) = look(&dir, None);
    assert_eq!((missing(&found), found.recovered().verdict), (vec![(37, None)], Verdict::Suspect));
    assert_eq!(seen, written[..37]);
    assert!(!found.damage()[0].fill(&written[37..]).unwrap(), "only a leader gives back an end");
    let damage = &found.damage()[0];
    assert_eq!(
        damage.to_string(),
        format!("{} at byte {}: run 39 and all behind it cannot be read", places[37].0.display(), places[37].1)
    );
}

#[test]
fn a_hole_that_a_snapshot_covers_costs_nothing_and_the_log_begins_behind_it() {
    for (bad, first) in [(vec![3, 4], 5), (vec![9], 10), (vec![0, 1, 2], 4), (vec![2, 8], 10)] {
        let (temporary, dir, written, places) = rotated();
        let snapshot = written[9].header().tail();
        for number in &bad {
            overwrite(&places[*number], &[7; 90]);
        }
        let files = names(&temporary.path().join("log"));
        let (found, seen) = look(&dir, Some(&snapshot));
        assert_eq!((seen.as_slice(), found.recovered().verdict), (&written[10..], Verdict::Clean), "{bad:?}");
        assert_eq!(found.recovered().before_first.0, written[first - 1].header().run, "{bad:?}");
        let (mut log, recovered) = found.open().unwrap();
        assert_eq!((recovered.tail, recovered.must_reach), (written[39].header().tail(), None));
        let reader = log.reader();
        assert_eq!(reader.range().0, written[first].header().run);
        let all = reader.read(written[first].header().run, RunIndex(u64::MAX), usize::MAX).unwrap();
        assert_eq!(all, written[first..]);
        assert_eq!(names(&temporary.path().join("log")), files, "nothing was changed");
        write(&mut log, &batch(1, &runs(written[39].header().tail(), 1, 1, 60)));
        let (trimmed, _) = log.trim(written[30].header().run).unwrap();
        assert!(trimmed > snapshot.run && names(&temporary.path().join("log")).len() < files.len());
    }
}

#[test]
fn a_hole_that_reaches_above_the_snapshot_ends_the_log_unless_it_is_filled() {
    let (_temporary, dir, written, places) = rotated();
    let snapshot = written[7].header().tail();
    let damage = || places[6..9].iter().for_each(|place| overwrite(place, &[7; 90]));
    damage();
    let (found, seen) = look(&dir, Some(&snapshot));
    assert_eq!((missing(&found), seen.len()), (vec![(6, Some(8))], 0));
    assert!(found.damage()[0].fill(&written[6..9]).unwrap());
    let (found, seen) = look(&dir, Some(&snapshot));
    assert_eq!((seen.as_slice(), found.recovered().verdict), (&written[8..], Verdict::Clean));

    damage();
    let (_, recovered) = look(&dir, Some(&snapshot)).0.open().unwrap();
    assert_eq!((recovered.tail, recovered.must_reach), (snapshot, Some(written[39].header().tail())));
}

#[test]
fn damaged_segments_are_kept_beside_once() {
    let (temporary, dir, _, places) = rotated();
    for number in [3, 4, 20] {
        overwrite(&places[number], &[1]);
    }
    let damaged = fs::read(&places[3].0).unwrap();
    let kept = look(&dir, None).0.keep_damaged().unwrap();
    assert_eq!(kept, [places[3].0.with_extension("damaged"), places[20].0.with_extension("damaged")]);
    assert_eq!(fs::read(&kept[0]).unwrap(), damaged);
    overwrite(&places[3], &[2]);
    drop(recover(&dir).unwrap());
    look(&dir, None).0.keep_damaged().unwrap();
    assert_eq!(fs::read(&kept[0]).unwrap(), damaged, "the first evidence stays");
    assert!(names(&temporary.path().join("log")).contains(&"0000000000000001.damaged".into()));
}
