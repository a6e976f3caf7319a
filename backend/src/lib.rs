//! A software switch that serves virtual machines' NICs over vhost-user.
