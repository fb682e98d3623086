use super::*;

fn effective(index: u64) -> bool {
    index.is_multiple_of(3) || index % 7 == 1
}

fn verdicts(first: u64, count: u32) -> Verdicts {
    let mut verdicts = Verdicts::clear(count);
    (0..count as usize).filter(|offset| effective(first + *offset as u64)).for_each(|offset| verdicts.set(offset));
    verdicts
}

/// A book of everything from `first` on, in runs of changing length.
fn book(first: u64, through: u64, bytes_max: usize) -> VerdictBook {
    let mut book = VerdictBook::new(LogIndex(first - 1), bytes_max);
    let mut next = first;
    while next <= through {
        let count = (next % 13 + 1).min(through - next + 1) as u32;
        book.push(LogIndex(next), count, &verdicts(next, count));
        next += u64::from(count);
    }
    book
}

#[track_caller]
fn assert_holds(book: &VerdictBook, first: u64, through: u64) {
    assert_eq!((book.after(), book.through()), (LogIndex(first - 1), LogIndex(through)));
    for from in first..=through {
        for count in [1, 2, 9, 40] {
            let expected = (from + u64::from(count) <= through + 1).then(|| verdicts(from, count));
            assert_eq!(book.get(LogIndex(from), count), expected, "{count} from {from}");
        }
    }
    assert_eq!(book.get(LogIndex(first - 1), 1), None);
}

#[test]
fn what_was_pushed_is_found_at_every_place_and_nothing_else() {
    for first in 1..20 {
        assert_holds(&book(first, 100, 1 << 20), first, 100);
    }
}

#[test]
fn copies_end_to_end_make_the_same_book() {
    let whole = book(1, 200, 1 << 20);
    for (first_cut, second_cut) in (1..60).flat_map(|first| (first..80).map(move |second| (first, second))) {
        let mut copied = VerdictBook::new(LogIndex(first_cut), 1 << 20);
        for (after, through) in [(first_cut, second_cut), (second_cut, 150), (150, 200)] {
            let bytes = whole.copy(LogIndex(after), LogIndex(through)).unwrap();
            assert!(copied.append(LogIndex(through), &bytes));
        }
        assert_eq!(copied.copy(LogIndex(first_cut), LogIndex(200)), whole.copy(LogIndex(first_cut), LogIndex(200)));
        assert_eq!(copied.get(LogIndex(first_cut + 1), 90), whole.get(LogIndex(first_cut + 1), 90));
    }
    assert_eq!(whole.copy(LogIndex(0), LogIndex(201)), None);
    let mut short = VerdictBook::new(LogIndex(0), 1 << 20);
    assert!(!short.append(LogIndex(16), &[0; 2]), "entries 1 to 16 lie in three bytes");
}

#[test]
fn trimmed_and_over_its_bound_the_oldest_go() {
    let mut trimmed = book(1, 100, 1 << 20);
    for first in [2, 8, 9, 30] {
        trimmed.trim(LogIndex(first));
        assert_holds(&trimmed, first, 100);
    }
    trimmed.trim(LogIndex(5));
    assert_holds(&trimmed, 30, 100);
    trimmed.trim(LogIndex(500));
    assert_eq!((trimmed.after(), trimmed.through()), (LogIndex(100), LogIndex(100)));
    trimmed.push(LogIndex(101), 9, &verdicts(101, 9));
    assert_holds(&trimmed, 101, 109);

    let bounded = book(1, 1000, 10);
    assert!(bounded.bits.len() <= 10);
    assert_holds(&bounded, 928, 1000);
}

#[test]
fn a_run_behind_a_gap_begins_the_book_anew() {
    let mut jumped = book(1, 20, 1 << 20);
    jumped.push(LogIndex(31), 5, &verdicts(31, 5));
    assert_holds(&jumped, 31, 35);
}

#[test]
fn a_book_goes_on_with_another_one_or_gives_way_to_it() {
    for (through, last) in (1..30).flat_map(|through| (through..60).map(move |last| (through, last))) {
        let mut whole = book(1, through, 1 << 20);
        whole.extend(book(through + 1, last, 1 << 20));
        assert_holds(&whole, 1, last);
    }
    let mut overtaken = book(1, 20, 10);
    overtaken.extend(book(21, 1000, 10));
    assert_holds(&overtaken, 928, 1000);
}
