"""``python -m minimal_vllm`` is the command ``minimal-vllm``."""

from minimal_vllm.cli.interrupt import quit_on_ctrl_c


def main() -> None:
    """Run the command. Importing it takes a while, in which Ctrl-C ends it quietly."""
    quit_on_ctrl_c()
    from minimal_vllm.cli.main import main as run_command

    run_command()


if __name__ == "__main__":
    main()
