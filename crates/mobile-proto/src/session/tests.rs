use super::*;
use crate::path::{Path, RelayPath};

/// Tests the memory of an idle session at a relay, which has thousands of them: a path and nothing
/// allocated beside it.
#[test]
fn an_idle_session_is_small() {
    assert!(size_of::<Session>() <= 1192, "{}", size_of::<Session>());
    assert!(size_of::<Path>() <= 544, "{}", size_of::<Path>());
    let now = Instant::now();
    let path = Path::accept(now, PathId(1), RelayPath::default(), false);
    assert_eq!((path.control.capacity(), path.rx.partial_frame.capacity()), (0, 0));
}
