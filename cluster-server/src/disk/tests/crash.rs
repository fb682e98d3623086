//! What a crash can leave of one pass of writes, to the byte, and the verdict on each. The simulator in `tests` cuts off everything else.

use voter_mesh::log::{MARK_AT, RECORDS_AT, Verdict};

use super::*;

const SEGMENT: &str = "log/0000000000000001.seg";

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
