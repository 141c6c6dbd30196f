import logging

from keras_mas.logs import quiet


def test_quiet_silences_warnings_and_keeps_errors(caplog):
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)
    with quiet():
        logger.warning("within")
        logger.error("an error")
    logger.warning("after")
    logger.removeHandler(caplog.handler)
    assert caplog.messages[0] == "an error" and "within" not in caplog.messages
    assert "after" in caplog.messages
