"""The panel's tabs: only the one that is open takes room."""

import qt


class Tabs:
    """Behavior of a QTabWidget whose pages are of different heights.

    :param widget: the QTabWidget.
    """

    def __init__(self, widget):
        self._widget = widget
        self.changedCallbacks = []  # called without arguments when another tab is opened
        widget.connect("currentChanged(int)", self._onChanged)
        self._fit()

    @property
    def current(self):
        """Name of the page that is open, as Qt Designer knows it."""
        return self._widget.currentWidget().objectName

    def show(self, name):
        """Open a page."""
        for index in range(self._widget.count):
            if self._widget.widget(index).objectName == name:
                self._widget.setCurrentIndex(index)

    def _onChanged(self, _index=0):
        self._fit()
        for callback in self.changedCallbacks:
            callback()

    def _fit(self):
        """A tab widget is as large as its largest page; so pages that are not open ask for nothing."""
        for index in range(self._widget.count):
            policy = qt.QSizePolicy.Preferred if index == self._widget.currentIndex else qt.QSizePolicy.Ignored
            self._widget.widget(index).setSizePolicy(policy, policy)
