//! What `GET /metrics` shows, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the classes of durations, in seconds.
const BOUNDS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Counts of what the server did.
#[derive(Debug, Default)]
pub struct Counters {
    requests: Mutex<BTreeMap<(String, u16), u64>>,
    durations: Mutex<BTreeMap<String, Durations>>,
    images: AtomicU64,
    batches: AtomicU64,
    busy_us: AtomicU64,
    cancelled: AtomicU64,
    waiting: AtomicUsize,
    connections: AtomicUsize,
}

/// Durations of the requests of a route.
#[derive(Debug, Default)]
struct Durations {
    /// Requests up to each bound.
    classes: [u64; BOUNDS.len()],
    count: u64,
    seconds: f64,
}

/// A connection that is counted.
pub struct OpenConnection(Arc<Counters>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

impl Counters {
    /// A request was answered.
    pub fn add_request(&self, route: &str, status: u16, took: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route.to_owned(), status)).or_default() += 1;
        drop(requests);
        let seconds = took.as_secs_f64();
        let mut durations = self
            .durations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let of_route = durations.entry(route.to_owned()).or_default();
        for (class, bound) in of_route.classes.iter_mut().zip(BOUNDS) {
            *class += u64::from(seconds <= bound);
        }
        of_route.count += 1;
        of_route.seconds += seconds;
    }

    /// A batch was computed.
    pub fn add_batch(&self, images: usize, took: Duration) {
        self.images.fetch_add(images as u64, Relaxed);
        self.batches.fetch_add(1, Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.busy_us.fetch_add(micros, Relaxed);
    }

    /// Images were dropped because their client left.
    pub fn add_cancelled(&self, images: usize) {
        self.cancelled.fetch_add(images as u64, Relaxed);
    }

    /// Images that wait now.
    pub fn set_waiting(&self, images: usize) {
        self.waiting.store(images, Relaxed);
    }

    /// Counts a connection as open until the result is dropped.
    pub fn open_connection(self: &Arc<Self>) -> OpenConnection {
        self.connections.fetch_add(1, Relaxed);
        OpenConnection(Arc::clone(self))
    }

    /// The text of `/metrics`; `gallery`: images in it.
    pub fn text(&self, gallery: usize) -> String {
        let mut out = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: String| {
            let _ = writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            );
        };
        let number = |value: &AtomicU64| value.load(Relaxed).to_string();
        one(
            "clasp_images_total",
            "counter",
            "Images that models computed.",
            number(&self.images),
        );
        one(
            "clasp_batches_total",
            "counter",
            "Batches that models computed.",
            number(&self.batches),
        );
        one(
            "clasp_model_seconds_total",
            "counter",
            "Seconds that models computed.",
            format!("{}", self.busy_us.load(Relaxed) as f64 / 1e6),
        );
        one(
            "clasp_images_cancelled_total",
            "counter",
            "Waiting images whose client left.",
            number(&self.cancelled),
        );
        let waiting = self.waiting.load(Relaxed).to_string();
        one(
            "clasp_images_waiting",
            "gauge",
            "Images that wait for a model.",
            waiting,
        );
        let connections = self.connections.load(Relaxed).to_string();
        one(
            "clasp_connections",
            "gauge",
            "Open connections.",
            connections,
        );
        one(
            "clasp_gallery_images",
            "gauge",
            "Images in the gallery.",
            gallery.to_string(),
        );
        if let Some(bytes) = resident_bytes() {
            one(
                "process_resident_memory_bytes",
                "gauge",
                "Resident memory.",
                bytes.to_string(),
            );
        }
        self.write_requests(&mut out);
        out
    }

    fn write_requests(&self, out: &mut String) {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "clasp_requests_total";
        let _ = writeln!(
            out,
            "# HELP {name} Requests answered.\n# TYPE {name} counter"
        );
        for ((route, status), count) in &*requests {
            let _ = writeln!(
                out,
                "{name}{{route=\"{route}\",status=\"{status}\"}} {count}"
            );
        }
        drop(requests);
        let name = "clasp_request_seconds";
        let _ = writeln!(
            out,
            "# HELP {name} Time to the answer.\n# TYPE {name} histogram"
        );
        let durations = self
            .durations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (route, of_route) in &*durations {
            for (bound, count) in BOUNDS.iter().zip(of_route.classes) {
                let _ = writeln!(
                    out,
                    "{name}_bucket{{route=\"{route}\",le=\"{bound}\"}} {count}"
                );
            }
            let Durations { count, seconds, .. } = of_route;
            let _ = writeln!(
                out,
                "{name}_bucket{{route=\"{route}\",le=\"+Inf\"}} {count}"
            );
            let _ = writeln!(out, "{name}_sum{{route=\"{route}\"}} {seconds}");
            let _ = writeln!(out, "{name}_count{{route=\"{route}\"}} {count}");
        }
    }
}

/// Resident memory of this process, where the system tells (Linux).
fn resident_bytes() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_counts_requests_by_route_and_status() {
        let counters = Counters::default();
        counters.add_request("/v1/embed", 200, Duration::from_millis(20));
        counters.add_request("/v1/embed", 200, Duration::from_secs(60));
        counters.add_request("/v1/embed", 503, Duration::from_millis(1));
        let text = counters.text(7);
        for line in [
            "clasp_requests_total{route=\"/v1/embed\",status=\"200\"} 2",
            "clasp_request_seconds_bucket{route=\"/v1/embed\",le=\"0.01\"} 1",
            "clasp_request_seconds_bucket{route=\"/v1/embed\",le=\"0.025\"} 2",
            "clasp_request_seconds_bucket{route=\"/v1/embed\",le=\"+Inf\"} 3",
            "clasp_gallery_images 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
