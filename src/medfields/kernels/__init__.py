"""The few compiled loops, each with a plain torch twin that defines its answer. Nothing is compiled when this is imported."""
