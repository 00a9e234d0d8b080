//! Tests of the stock of vouchers.
