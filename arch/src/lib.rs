//! Memory layout, boot protocols, CPUID and ACPI tables of each architecture, as functions from values to bytes.
