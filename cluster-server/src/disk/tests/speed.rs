//! Figures, not verdicts: `cargo test -p cluster-server --release speed -- --ignored --nocapture`. On a real disk, not in memory.

use std::time::Instant;

use super::*;

fn median_us(mut times: Vec<u128>) -> u128 {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
#[ignore = "prints figures of this machine"]
fn appending_to_a_fresh_and_to_a_recycled_segment() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temporary.path()).unwrap();
    let options = LogOptions { segment_bytes: 8 << 20, ..LogOptions::default() };
    let begin = Instant::now();
    let mut log = Log::create(&dir, IDENTITY, ID, Tail::zero(&IDENTITY), options).unwrap();
    println!("create: {:?}", begin.elapsed());
    for name in ["fresh", "fresh", "recycled", "recycled"] {
        let mut times = Vec::new();
        for run in runs(*log.tail(), 1, 2030, 3984) {
            let begin = Instant::now();
            write(&mut log, &batch(1, &[run]));
            times.push(begin.elapsed().as_micros());
        }
        println!("{name}: {} us", median_us(times));
        let tail = log.tail().run;
        log.trim(tail).unwrap();
    }
    assert!(recover(&dir).unwrap().2.last().unwrap().header().tail() == *log.tail());
}

#[test]
#[ignore = "prints figures of this machine"]
fn recovering_a_million_entries() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temporary.path()).unwrap();
    let mut log = Log::create(&dir, IDENTITY, ID, Tail::zero(&IDENTITY), LogOptions::default()).unwrap();
    let one: Bytes = entry(&EntrySpec::internal(EntryKind::Command), &[7; 64]).unwrap();
    let entries = vec![one.as_ref(); 100];
    for _ in 0..100 {
        let mut tail = *log.tail();
        let runs: Vec<_> = (0..100)
            .map(|_| {
                let run = Run::seal(&tail, Term(1), TimeMs(1), IDENTITY.epoch, IDENTITY.room, &entries).unwrap();
                tail = run.header().tail();
                run
            })
            .collect();
        write(&mut log, &batch(1, &runs));
    }
    drop(log);
    let (begin, mut seen) = (Instant::now(), 0);
    Log::recover(&dir, IDENTITY, ID, None, LogOptions::default(), &mut |run, _| seen += run.header().count).unwrap();
    println!("recover: {:?}", begin.elapsed());
    assert_eq!(seen, 1_000_000);
}
