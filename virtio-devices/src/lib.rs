//! Virtio devices, their transport and queues, and their host side.
