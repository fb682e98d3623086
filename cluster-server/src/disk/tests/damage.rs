//! Bits that rot: whatever was acknowledged is either there, or its loss is known.

use voter_mesh::log::{MARK_AT, RECORDS_AT, SECTOR_BYTES, Verdict};

use super::*;

const SEGMENT: &str = "log/0000000000000001.seg";

#[test]
fn no_flipped_bit_of_a_record_is_served_and_the_verdict_tells_what_it_costs() {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 3, 4);
    for run in &written {
        write(&mut log, &batch(1, std::slice::from_ref(run)));
    }
    let reader = log.reader();
    let file = fs::OpenOptions::new().read(true).write(true).open(temporary.path().join(SEGMENT)).unwrap();
    let mut at = RECORDS_AT as usize;
    for (number, run) in written.iter().enumerate() {
        // The last sync is the only one that no later mark has confirmed.
        let expected = if number == 2 { Verdict::Doubtful } else { Verdict::Suspect };
        for offset in 0..run.bytes().len() * 8 {
            flip(&file, at + offset / 8, offset % 8);
            let (_, recovered, found) = recover(&dir).unwrap();
            assert_eq!((found.as_slice(), recovered.verdict), (&written[..number], expected), "run {number}, bit {offset}");
            assert_eq!(recovered.must_reach, Some(written[2].header().tail()));
            assert!(reader.read(run.header().run, run.header().run, usize::MAX).is_err());
            flip(&file, at + offset / 8, offset % 8);
        }
        at += run.bytes().len();
    }
    assert_eq!(recover(&dir).unwrap().1.verdict, Verdict::Clean);
}

#[test]
fn a_log_goes_on_into_its_next_segment_whatever_has_rotted_in_this_one() {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 20, 100);
    write(&mut log, &batch(1, &written[..1]));
    let file = fs::OpenOptions::new().read(true).write(true).open(temporary.path().join(SEGMENT)).unwrap();
    flip(&file, RECORDS_AT as usize, 0);
    for run in &written[1..] {
        write(&mut log, &batch(1, std::slice::from_ref(run)));
    }
    assert!(names(&temporary.path().join("log")).len() > 1);
    // Whoever reads it is told.
    assert!(log.reader().read(RunIndex(1), RunIndex(1), usize::MAX).is_err());
    drop(log);
    let goal = Some(written[19].header().tail());
    let (_, recovered, _) = recover(&dir).unwrap();
    assert_eq!((recovered.verdict, recovered.must_reach), (Verdict::Suspect, goal));
}

#[test]
fn no_flipped_bit_of_a_mark_gives_a_second_vote_in_one_term_and_none_of_a_header_passes() {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 2, 4);
    write(&mut log, &batch(1, &written[..1]));
    write(&mut log, &Batch { vote: OTHER, ..batch(1, &written[1..]) });
    write(&mut log, &Batch { vote: ID, must_sync: true, ..batch(2, &[]) });
    drop(log);
    let file = fs::OpenOptions::new().read(true).write(true).open(temporary.path().join(SEGMENT)).unwrap();
    let hard_state = |what| {
        let (_, LogRecovered { term, vote, vote_lost, verdict, .. }, found) = recover(&dir).unwrap();
        assert_eq!((found.as_slice(), verdict), (&written[..], Verdict::Clean), "{what}");
        (term, vote, vote_lost)
    };
    assert_eq!(hard_state("whole"), (Term(2), ID, false));
    for bit in 0..SECTOR_BYTES * 8 {
        let flip_at = |at: u64| flip(&file, at as usize + bit / 8, bit % 8);
        flip_at(0);
        assert!(matches!(recover(&dir), Err(DiskError::Damaged { .. })), "header, bit {bit}");
        flip_at(0);
        // The older mark stands in for the newer one: term and vote are not the last, and known not to be certain.
        flip_at(MARK_AT[1]);
        assert_eq!(hard_state("newer mark"), (Term(1), OTHER, true), "newer mark, bit {bit}");
        flip_at(MARK_AT[0]);
        assert!(matches!(recover(&dir), Err(DiskError::Damaged { .. })), "both marks, bit {bit}");
        flip_at(MARK_AT[1]);
        // Nobody can tell which of the two was the newer one.
        assert_eq!(hard_state("older mark"), (Term(2), ID, true), "older mark, bit {bit}");
        flip_at(MARK_AT[0]);
    }
    assert_eq!(hard_state("whole again"), (Term(2), ID, false));
}

#[test]
fn what_is_lost_stays_known_across_restarts_until_the_log_reaches_it_again() {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 20, 100);
    for run in &written {
        write(&mut log, &batch(1, std::slice::from_ref(run)));
    }
    drop(log);
    // Damage in the first segment: everything behind it is out of reach.
    let file = fs::OpenOptions::new().read(true).write(true).open(temporary.path().join(SEGMENT)).unwrap();
    flip(&file, RECORDS_AT as usize + written[0].bytes().len() + 80, 3);
    let goal = Some(written[19].header().tail());
    let (mut log, recovered, found) = recover(&dir).unwrap();
    assert_eq!((found.as_slice(), recovered.verdict, recovered.must_reach), (&written[..1], Verdict::Suspect, goal));
    let marked = Batch { vote: OTHER, must_sync: true, ..batch(2, &[]) };
    write(&mut log, &marked);
    drop(log);
    assert_eq!(recover(&dir).unwrap().1.must_reach, goal, "a vote does not make it whole");

    let (mut log, ..) = recover(&dir).unwrap();
    write(&mut log, &Batch { vote: OTHER, ..batch(2, &written[1..10]) });
    assert_eq!(log.must_reach(), goal);
    drop(log);
    let (mut log, recovered, found) = recover(&dir).unwrap();
    assert_eq!((found.as_slice(), recovered.verdict, recovered.must_reach), (&written[..10], Verdict::Suspect, goal));
    write(&mut log, &Batch { vote: OTHER, ..batch(2, &written[10..]) });
    assert_eq!(log.must_reach(), None);
    drop(log);
    let (_, recovered, found) = recover(&dir).unwrap();
    assert_eq!((found, recovered.verdict, recovered.must_reach), (written, Verdict::Clean, None));
}

#[test]
fn a_lone_voter_accepts_a_doubtful_end_once() {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 2, 100);
    write(&mut log, &batch(1, &written[..1]));
    write(&mut log, &batch(1, &written[1..]));
    drop(log);
    let file = fs::OpenOptions::new().read(true).write(true).open(temporary.path().join(SEGMENT)).unwrap();
    flip(&file, RECORDS_AT as usize + written[0].bytes().len() + 80, 3);
    let (mut log, recovered, _) = recover(&dir).unwrap();
    assert_eq!(recovered.verdict, Verdict::Doubtful);
    log.accept_end();
    log.sync().unwrap();
    drop(log);
    let (_, recovered, found) = recover(&dir).unwrap();
    assert_eq!((found.as_slice(), recovered.must_reach), (&written[..1], None));
    assert_eq!(recovered.verdict, Verdict::Torn, "the damaged rest still stands behind the end");
}

#[test]
fn a_file_cut_short_anywhere_gives_a_prefix_or_an_error() {
    let (temporary, dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 3, 40);
    write(&mut log, &batch(1, &written));
    drop(log);
    let path = temporary.path().join(SEGMENT);
    let whole = fs::read(&path).unwrap();
    let end = RECORDS_AT as usize + written.iter().map(|run| run.bytes().len()).sum::<usize>();
    for bytes in (0..RECORDS_AT as usize).step_by(509).chain(RECORDS_AT as usize..end + 70) {
        fs::write(&path, &whole[..bytes]).unwrap();
        match recover(&dir) {
            Ok((_, recovered, found)) => {
                assert!(written.starts_with(&found), "{bytes} bytes");
                assert_eq!(recovered.must_reach.is_none(), found.len() == 3, "{bytes} bytes: {recovered:?}");
            }
            Err(DiskError::Damaged { .. }) => assert!(bytes < RECORDS_AT as usize, "{bytes} bytes"),
            Err(error) => panic!("{bytes} bytes: {error}"),
        }
    }
}
