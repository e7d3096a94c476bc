"""The bare stores: what any engine pays at least, written by hand for one purpose each."""
