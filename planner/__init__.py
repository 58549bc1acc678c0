"""Pure planning: configuration in, a frozen plan out. Reads no clock, no network and no environment."""
