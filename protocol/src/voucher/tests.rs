//! Voucher tests.
