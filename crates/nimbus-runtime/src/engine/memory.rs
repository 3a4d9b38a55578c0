//! The end of memory: the heap's limit, and array buffers counted by our own allocator.
//!
//! A heap at its limit ends the process with a status that the server knows; a worker runs one invocation, so
//! nobody else is harmed. An array buffer beyond the limit is refused to the function as a `RangeError`.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

use deno_core::v8;

use crate::protocol::EXIT_OUT_OF_MEMORY;

/// Bytes of array buffers alive, of all isolates of this process.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Called by V8 when a collection did not help.
pub(crate) unsafe extern "C" fn near_heap_limit(_: *mut c_void, _: usize, _: usize) -> usize {
    end()
}

/// Called by V8 when it cannot go on.
pub(crate) unsafe extern "C" fn out_of_memory(_: *const std::ffi::c_char, _: &v8::OomDetails) {
    end()
}

/// Ends the process at once: no destructor may need the memory that is not there.
pub(crate) fn end() -> ! {
    // SAFETY: `_exit` takes any number and does not return.
    unsafe { libc::_exit(EXIT_OUT_OF_MEMORY) }
}

struct Limit {
    bytes: usize,
}

static VTABLE: v8::RustAllocatorVtable<Limit> = v8::RustAllocatorVtable {
    allocate,
    allocate_uninitialized,
    free,
    drop: drop_limit,
};

/// An allocator for array buffers of at most `bytes` in all.
pub(crate) fn allocator(bytes: usize) -> v8::UniqueRef<v8::Allocator> {
    // SAFETY: the functions of the table take the pointer for what it is, and `drop_limit` frees it.
    unsafe { v8::new_rust_allocator(Box::into_raw(Box::new(Limit { bytes })), &VTABLE) }
}

fn layout(length: usize) -> Option<Layout> {
    Layout::from_size_align(length.max(1), 16).ok()
}

fn reserve(limit: &Limit, length: usize) -> Option<Layout> {
    let took = USED.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
        used.checked_add(length)
            .filter(|total| *total <= limit.bytes)
    });
    took.ok().and_then(|_| layout(length))
}

unsafe extern "C" fn allocate(limit: &Limit, length: usize) -> *mut c_void {
    match reserve(limit, length) {
        // SAFETY: the layout's size is not 0.
        Some(layout) => unsafe { alloc_zeroed(layout).cast() },
        None => std::ptr::null_mut(),
    }
}

unsafe extern "C" fn allocate_uninitialized(limit: &Limit, length: usize) -> *mut c_void {
    match reserve(limit, length) {
        // SAFETY: the layout's size is not 0.
        Some(layout) => unsafe { alloc(layout).cast() },
        None => std::ptr::null_mut(),
    }
}

unsafe extern "C" fn free(_: &Limit, data: *mut c_void, length: usize) {
    USED.fetch_sub(length, Ordering::AcqRel);
    if let Some(layout) = layout(length) {
        // SAFETY: V8 gives back what `allocate` gave, with its length.
        unsafe { dealloc(data.cast(), layout) }
    }
}

unsafe extern "C" fn drop_limit(limit: *const Limit) {
    // SAFETY: made by `Box::into_raw` in `allocator`, and dropped once.
    drop(unsafe { Box::from_raw(limit.cast_mut()) });
}
