"""The self test that ships with the module passes, with the model that ships."""

import unittest

from panel_case import slicer


class SelfTest(unittest.TestCase):
    def test_it_passes(self):
        from SpineSegAI import SpineSegAITest

        test = SpineSegAITest()
        test.messageDelay = 0
        test.runTest()
        slicer.mrmlScene.Clear(0)


if __name__ == "__main__":
    unittest.main()
