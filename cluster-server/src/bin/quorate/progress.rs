//! Progress bars, where a person waits.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of bytes, and with them what they are for; without a length where it is not known. It hides itself where stderr is not a
/// terminal or the output is for a script.
pub(crate) fn bytes(doing: &'static str, length: Option<u64>, json: bool) -> ProgressBar {
    // Indicatif hides itself where stderr is not a terminal.
    let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(length, target).with_message(doing);
    let template = match length {
        Some(_) => "{msg:10} {bar:40} {bytes}/{total_bytes}, {bytes_per_sec}",
        None => "{msg:10} {bytes}, {bytes_per_sec}",
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
