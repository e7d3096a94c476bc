"""What a durable step costs: here, on the bare stores, and with other engines. `make bench` runs it."""
