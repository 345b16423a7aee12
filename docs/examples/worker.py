"""A program of its own that offers a service: ``services_config.yaml`` starts it, and anybody may.

python worker.py --server-url=http://localhost:9527
"""

import argparse

import trio

from hypha.client import connect_to_server


def count_words(text):
    return len(text.split())


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server-url", required=True)
    parser.add_argument("--workspace")
    parser.add_argument("--token")
    options = parser.parse_args()
    async with connect_to_server(vars(options)) as server:
        await server.register_service(
            {"id": "word-counter", "config": {"visibility": "public"}, "count_words": count_words}
        )
        await server.serve()


if __name__ == "__main__":
    trio.run(main)
