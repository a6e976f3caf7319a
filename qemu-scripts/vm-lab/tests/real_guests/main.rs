//! Real Linux guests under QEMU, on a real daemon. Slow to boot, so they are ignored unless asked for:
//! `./qemu-scripts/run-tests` asks, one test at a time, so that a booted pair serves many of them.

mod back_to_back;
