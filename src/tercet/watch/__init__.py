"""Running and finished stages of a store, watched from a browser or a terminal; nothing is ever written there."""
