//! A command's words, taken one after the other; whatever is left over or missing fails the script at its line.

use std::str::FromStr;

/// The words of one line.
pub(crate) struct Words<'a> {
    place: String,
    words: Vec<&'a str>,
    at: usize,
}

impl<'a> Words<'a> {
    pub(crate) fn new(place: String, line: &'a str) -> Self {
        Self { place, words: line.split_whitespace().collect(), at: 0 }
    }

    /// The next word, if there is one.
    pub(crate) fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at).copied();
        self.at += usize::from(word.is_some());
        word
    }

    /// The next word.
    pub(crate) fn word(&mut self) -> &'a str {
        self.next().unwrap_or_else(|| self.wrong("another word"))
    }

    /// The next word as what it should be.
    pub(crate) fn parse<T: FromStr>(&mut self) -> T {
        let word = self.word();
        word.parse().unwrap_or_else(|_| self.wrong(&format!("something other than {word}")))
    }

    /// The next word as a payload: as it stands, or `x*1000` for so many.
    pub(crate) fn payload(&mut self) -> Vec<u8> {
        let word = self.word();
        match word.split_once('*').map(|(what, times)| (what, times.parse())) {
            Some((what, Ok(times))) => what.repeat(times).into_bytes(),
            _ => word.as_bytes().to_vec(),
        }
    }

    /// Takes the next word if it is this one.
    pub(crate) fn is(&mut self, word: &str) -> bool {
        let is = self.words.get(self.at) == Some(&word);
        self.at += usize::from(is);
        is
    }

    /// What follows this word, if that comes next.
    pub(crate) fn after<T: FromStr>(&mut self, word: &str) -> Option<T> {
        self.is(word).then(|| self.parse())
    }

    /// All words that are left.
    pub(crate) fn rest(&mut self) -> Vec<&'a str> {
        self.words.split_off(self.at)
    }

    pub(crate) fn end(&self) {
        assert!(self.at >= self.words.len(), "{}: does not know what to do with {:?}", self.place, &self.words[self.at..]);
    }

    pub(crate) fn wrong(&self, expected: &str) -> ! {
        panic!("{}: expected {expected}", self.place)
    }
}
