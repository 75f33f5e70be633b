"""From samples to batches: decode, stack, collate, and replace unreadable samples."""
