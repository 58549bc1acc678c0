"""Replies of every shape, from a gRPC server that sends them as they are written here."""

# pyright: basic
import asyncio
import struct
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from frontend.engine import Engine, Generation, Tokens
from frontend.errors import ApiError

pb: Any = service_pb2
ASKED = Generation(prompt=[1], max_tokens=9, end_id=0, pad_id=0, seed=1)


def reply(ids: list[int], log_probs: list[float] | None = None, *, final: bool = False, error: str = ""):
    message = pb.ModelStreamInferResponse(error_message=error)
    response = message.infer_response
    response.model_name, response.id = "tensorrt_llm", "1"
    response.parameters["triton_final_response"].bool_param = final
    if ids or not final:
        response.outputs.add(name="output_ids", datatype="INT32", shape=[1, 1, len(ids)])
        response.raw_output_contents.append(struct.pack(f"<{len(ids)}i", *ids))
    if log_probs:
        response.outputs.add(name="output_log_probs", datatype="FP32", shape=[1, 1, len(log_probs)])
        response.raw_output_contents.append(struct.pack(f"<{len(log_probs)}f", *log_probs))
    return message


def answer_to(replies: list) -> list[Tokens]:
    class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
        async def ModelStreamInfer(self, request_iterator, context):  # noqa: ARG002
            async for _ in request_iterator:
                for one in replies:
                    yield one

    async def ask() -> list[Tokens]:
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        engine = Engine(f"127.0.0.1:{port}", "tensorrt_llm", 60)
        try:
            return [tokens async for tokens in engine.answer(ASKED).tokens()]
        finally:
            await engine.close()
            await server.stop(None)

    return asyncio.run(ask())


def test_every_reply_is_read_whatever_those_before_it_were_like():
    given = [
        Tokens([7], [], False),
        Tokens([7], [], False),
        Tokens([2**31 - 1], [], False),
        Tokens([8, 9], [], False),
        Tokens([], [], False),
        Tokens([5], [-0.5], False),
        Tokens([-1], [], False),
        Tokens([0x0432], [], False),
        Tokens([6], [], True),
    ]
    assert answer_to([reply(ids, log_probs, final=final) for ids, log_probs, final in given]) == given


def test_an_answer_whose_end_is_a_reply_of_its_own():
    assert answer_to([reply([7]), reply([8]), reply([], final=True)]) == [
        ([7], [], False),
        ([8], [], False),
        ([], [], True),
    ]


def test_an_error_after_replies_that_were_alike():
    with pytest.raises(ApiError, match="out of memory"):
        answer_to([reply([7]), reply([8]), reply([], error="out of memory", final=True)])


def test_a_reply_with_nothing_in_it_is_no_token():
    assert answer_to([pb.ModelStreamInferResponse(), reply([7], final=True)]) == [
        ([], [], False),
        ([7], [], True),
    ]
