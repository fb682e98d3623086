//! Time, latencies, and what the servers spend.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Latencies up to a minute, in microseconds, to two digits; shared by tasks.
pub struct Latencies(Mutex<Histogram<u64>>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 2).expect("the bounds are in order")))
    }
}

impl Latencies {
    fn lock(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn record(&self, latency: Duration) {
        self.lock().saturating_record(latency.as_micros() as u64);
    }

    pub fn reset(&self) {
        self.lock().reset();
    }

    pub fn len(&self) -> u64 {
        self.lock().len()
    }

    pub fn figures(&self) -> Value {
        let latencies = self.lock();
        let at = |quantile| latencies.value_at_quantile(quantile);
        json!({"p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": latencies.max()})
    }
}

/// Adds the fields of one object to another.
pub fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// Nanoseconds of the system's clock, the same in every process of this machine.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

pub fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// Microseconds of processor time that processes have used.
pub fn cpu_us(pids: &[u32]) -> u64 {
    let one = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        Some((ticks()? + ticks()?) * 10_000)
    };
    pids.iter().filter_map(one).sum()
}

/// KiB that processes hold.
pub fn memory_kib(pids: &[u32]) -> u64 {
    let one = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    pids.iter().filter_map(one).sum()
}
