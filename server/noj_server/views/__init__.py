"""One blueprint per resource. Views translate HTTP to services and back, and decide nothing."""
