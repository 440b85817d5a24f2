//! The worker's modules that read what strangers wrote, as they are, and nothing else of it: this
//! builds in a minute where the whole takes several.

#[path = "../../../src/config/mod.rs"]
pub mod config;
#[path = "../../../src/rules/mod.rs"]
pub mod rules;

#[path = "../../../src/broker"]
pub mod broker {
    //! The broker's edge.
    pub mod wire;
}

#[path = "../../../src/gateway"]
pub mod gateway {
    //! The gateway's edge.
    pub mod sign;
    pub mod wire;
}
