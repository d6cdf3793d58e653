"""`vmm audit`: one module per subcommand."""
