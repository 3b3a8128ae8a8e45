"""Cases of the protocol as data, each run over every way to read: streams, polls, long polls, the polling function, and a mix."""
