//! `mobile check`: is this machine able to run it, and what is in the way.
//!
//! `facts` are gathered from the kernel, files and the network, without changing anything; `judge` is pure, and says
//! what they mean and what to do.

mod facts;
mod judge;
mod reach;
mod trial;

use std::path::Path;

use mobile_io::check::CheckReport;

pub(crate) use self::reach::resolve;

/// Looks at everything.
pub(crate) async fn check(config: Option<&Path>) -> CheckReport {
    CheckReport::new(judge::judge(&facts::gather(config).await))
}
