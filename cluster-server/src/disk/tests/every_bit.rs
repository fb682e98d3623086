//! Every bit of a log of 200 records, flipped in turn. Each goes through the walk's own steps, one in each byte through a whole start.

use std::os::unix::fs::FileExt;

use bytes::Bytes;
use voter_mesh::log::{MARK_AT, Mark, MarkSlots, RECORDS_AT, SECTOR_BYTES, Step, Verdict, find_run, judge, step};

use super::*;

const RECORDS: usize = 200;
/// So many records were confirmed by a later mark. One more was synced, and the last was not: nobody was told of it.
const CONFIRMED: usize = RECORDS - 2;

/// The log, and its segment's file.
fn log_of_200() -> (TempDir, DataDir, Vec<Run>, fs::File) {
    let temporary = temporary();
    let dir = DataDir::open(temporary.path()).unwrap();
    let options = LogOptions { segment_bytes: 12288 + (32 << 10), spares_max: 0 };
    let mut log = Log::create(&dir, IDENTITY, ID, Tail::zero(&IDENTITY), options).unwrap();
    let written = runs(Tail::zero(&IDENTITY), 1, RECORDS, 2);
    for run in &written[..RECORDS - 1] {
        write(&mut log, &Batch { vote: OTHER, ..batch(1, std::slice::from_ref(run)) });
    }
    let path = temporary.path().join("log/0000000000000001.seg");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let end = RECORDS_AT + written[..RECORDS - 1].iter().map(|run| run.bytes().len() as u64).sum::<u64>();
    file.write_all_at(written[RECORDS - 1].bytes(), end).unwrap();
    (temporary, dir, written, file)
}

fn expected(number: usize) -> Verdict {
    match number {
        number if number < CONFIRMED => Verdict::Suspect,
        CONFIRMED => Verdict::Doubtful,
        _ => Verdict::Torn,
    }
}

#[test]
fn whichever_bit_of_200_records_flips_the_walk_ends_before_it_goes_on_behind_it_and_knows_what_it_costs() {
    let (_temporary, _dir, written, file) = log_of_200();
    let slots = [0, 1].map(|slot| {
        let mut sector = [0; SECTOR_BYTES];
        file.read_exact_at(&mut sector, MARK_AT[slot]).unwrap();
        Mark::decode(&sector, 1, slot).unwrap()
    });
    let mark = MarkSlots(slots.map(Some)).newest().unwrap();
    assert_eq!((mark.synced_through, mark.last), (written[CONFIRMED - 1].header().run, written[CONFIRMED].header().tail()));
    let mut before = Tail::zero(&IDENTITY);
    for (number, run) in written.iter().enumerate() {
        let bytes: Vec<u8> = written[number..].iter().take(2).flat_map(|run| run.bytes().to_vec()).chain([0; 64]).collect();
        for bit in 0..run.bytes().len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let flipped = Bytes::from(flipped);
            assert_eq!(step(&before, &IDENTITY, &mut flipped.clone()), Step::End { torn: true }, "run {number}, bit {bit}");
            if number < CONFIRMED {
                let far = find_run(&before, mark.last.run, &IDENTITY, &flipped, true);
                assert_eq!(far, Ok((run.bytes().len(), written[number + 1].clone())), "run {number}, bit {bit}");
            }
        }
        assert_eq!(judge(&before, true, &mark), expected(number), "run {number}");
        before = run.header().tail();
    }
}

#[test]
fn whichever_byte_of_200_records_is_bad_a_start_finds_exactly_the_good_ones() {
    const WORKERS: usize = 4;
    std::thread::scope(|scope| (0..WORKERS).for_each(|worker| drop(scope.spawn(move || spoil_every_byte_of(worker, WORKERS)))));
}

/// Every byte of every `step`th record from `first` on, in a log of its own.
fn spoil_every_byte_of(first: usize, step: usize) {
    let (_temporary, dir, written, file) = log_of_200();
    let goal = written[CONFIRMED].header().tail();
    for number in (first..RECORDS).step_by(step) {
        let run = &written[number];
        let at = RECORDS_AT as usize + written[..number].iter().map(|run| run.bytes().len()).sum::<usize>();
        for offset in 0..run.bytes().len() {
            flip(&file, at + offset, offset % 8);
            let mut shown = Vec::with_capacity(RECORDS);
            let look = Log::look(&dir, IDENTITY, ID, None, SMALL, &mut |run, _| shown.push(run.clone())).unwrap();
            let holes: Vec<_> = look.damage().iter().map(|damage| (damage.first, damage.hole.unwrap().last())).collect();
            let this = run.header().run;
            assert_eq!(holes, [(this, this)][..usize::from(number < CONFIRMED)], "run {number}, byte {offset}");
            if offset % 16 == 0 {
                let read = |from| look.reader().read(from, RunIndex(u64::MAX), usize::MAX).unwrap_or_default();
                assert_eq!(read(this), [], "run {number}, byte {offset}");
                assert_eq!(read(RunIndex(2)), written[..number], "run {number}, byte {offset}");
                let behind = if number < CONFIRMED { &written[number + 1..] } else { &[] };
                assert_eq!(read(this.next()), behind, "run {number}, byte {offset}");
            }
            let (_, found) = look.open().unwrap();
            assert_eq!((shown.as_slice(), found.verdict), (&written[..number], expected(number)), "run {number}, byte {offset}");
            assert_eq!(found.must_reach, (number <= CONFIRMED).then_some(goal), "run {number}, byte {offset}");
            assert_eq!((found.term, found.vote, found.vote_lost), (Term(1), OTHER, false), "run {number}, byte {offset}");
            flip(&file, at + offset, offset % 8);
        }
    }
    let (_, recovered, found) = recover(&dir).unwrap();
    assert_eq!((found, recovered.verdict), (written, Verdict::Torn), "the last one has no mark");
}
