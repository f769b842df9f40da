//! Tests.

pub(super) mod model;

use std::time::Duration;

use model::{Link, MS};

#[test]
fn explore() {
    for mbits in [0.5, 2.0, 10.0, 50.0, 100.0, 200.0] {
        for rtt in [5, 20, 100, 200] {
            for fifo_ms in [50u64, 200, 1000] {
                let rate = (mbits * 125_000.0) as u64;
                let mut link = Link::new(rate, rtt * MS);
                link.bottleneck.fifo = (rate * fifo_ms / 1000).max(20_000);
                link.typing = Some(Duration::from_millis(97));
                let mut text = String::new();
                for _ in 0..6 {
                    let r = link.run(Duration::from_secs(2));
                    text += &format!(
                        " {:.2}/{:?}/{:?}",
                        r.bytes as f64 / (rate * 2) as f64,
                        r.slowest_keystroke.as_millis(),
                        r.longest.as_millis()
                    );
                }
                println!("{mbits} Mbit/s rtt {rtt} fifo {fifo_ms}:{text} {:?}", link.switches);
            }
        }
    }
}
