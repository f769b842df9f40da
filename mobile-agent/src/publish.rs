//! Publishes state on watch channels, on which each change wakes every receiver.

use std::sync::Arc;

use tokio::sync::watch;

/// Publishes `new` unless it equals the published state. Returns whether it was published.
pub(crate) fn publish_if_changed<T: PartialEq>(publish: &watch::Sender<Arc<T>>, new: T) -> bool {
    publish.send_if_modified(|published| {
        let is_new = **published != new;
        if is_new {
            *published = Arc::new(new);
        }
        is_new
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_state_is_not_published_again() {
        let (publish, mut published) = watch::channel(Arc::new(vec![1]));
        assert!(!publish_if_changed(&publish, vec![1]));
        assert!(!published.has_changed().unwrap());
        assert!(publish_if_changed(&publish, vec![1, 2]));
        assert!(published.has_changed().unwrap());
        let held = Arc::clone(&published.borrow_and_update());
        assert!(!publish_if_changed(&publish, vec![1, 2]));
        assert!(!published.has_changed().unwrap());
        assert!(Arc::ptr_eq(&held, &published.borrow()), "the published state stays the same object");
    }
}
