//! `home-relay check`: is this machine able to serve, and what is in the way.
//!
//! `facts` are gathered without changing anything; `judge` is pure, and says what they mean and what to do.

mod facts;
mod judge;

use std::path::Path;

use mobile_io::check::CheckReport;

/// Looks at everything.
pub(crate) async fn check(config: &Path) -> CheckReport {
    CheckReport::new(judge::judge(&facts::gather(config).await))
}
