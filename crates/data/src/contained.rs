//! Panics of decoders that are not ours, on files that are damaged: the caller reports the file,
//! and the program continues. A program that calls [`silence`] prints no message of such a panic.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// What `decode` returns; nothing if it panics. It must not leave anything half changed that is
/// used afterwards.
pub fn contained<T>(decode: impl FnOnce() -> T) -> Option<T> {
    let before = IS_CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    IS_CONTAINED.set(before);
    result.ok()
}

/// From now on contained panics print nothing; the others are reported as before.
pub fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_CONTAINED.get() {
                report(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_inside_is_nothing_and_one_outside_is_a_panic() {
        silence();
        assert_eq!(contained(|| 3), Some(3));
        let bytes: &[u8] = &[];
        let outer = contained(|| {
            assert_eq!(contained(|| bytes[bytes.len()]), None);
            assert!(IS_CONTAINED.get(), "still inside the outer one");
            7
        });
        assert_eq!(outer, Some(7));
        assert!(!IS_CONTAINED.get());
        assert!(catch_unwind(|| bytes[bytes.len()]).is_err());
    }
}
