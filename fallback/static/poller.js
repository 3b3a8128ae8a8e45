/* Edge Relay for old browsers: page after page of a poll URL. ECMAScript 5. */
window.RelayPoller = function (url, options) {
  'use strict';
  var ANSWER_MS = 45000; // a long poll's 25 s, and a slow network
  var PAUSE_MS = 500; // a relay that stops answers waiting polls at once
  var self = this, token = options.token, renew = token, failures = 0, renewed, stopped, timer, request, began;

  if (typeof token === 'function') token = '';
  else renew = 0;
  self.cursor = options.cursor || '';
  self.stop = function () {
    stopped = true;
    clearTimeout(timer);
    if (request) request.abort();
  };

  function tell(name, value) {
    if (stopped || !options[name]) return;
    try {
      options[name](value);
    } catch (error) { // for the console
      setTimeout(function () { throw error; }, 0);
    }
  }

  function later(ms) {
    if (!stopped) timer = setTimeout(start, ms);
  }

  function start() {
    if (token || !renew) ask();
    else renew(function (fresh) {
      token = fresh;
      if (!stopped) ask();
    });
  }

  function ask() {
    var xhr = request = new XMLHttpRequest(), done;
    function finish(late) {
      if (done || stopped) return;
      done = true;
      clearTimeout(timer);
      answered(late ? 0 : xhr.status, xhr);
    }
    began = Date.now();
    xhr.open('GET', url + (self.cursor && (/\?/.test(url) ? '&' : '?') + 'cursor=' + encodeURIComponent(self.cursor)));
    if (token) xhr.setRequestHeader('Authorization', 'Bearer ' + token);
    xhr.onreadystatechange = function () {
      if (xhr.readyState === 4) finish();
    };
    timer = setTimeout(function () {
      finish(true);
      xhr.abort();
    }, ANSWER_MS);
    xhr.send();
  }

  function answered(status, xhr) {
    var body, ms;
    try {
      body = JSON.parse(xhr.responseText);
    } catch (error) {}
    if (status === 200 && body && body.events) return take(body);
    if (status === 401 && renew && !renewed) {
      renewed = true; // a fresh one that is refused is final
      token = '';
      return later(0);
    }
    if (/^4(?!08|25|29)/.test(status)) {
      tell('onend', body || { status: status });
      return self.stop();
    }
    ms = Math.min(60000, 1000 * Math.pow(2, failures++)); // a minute at most
    ms = Math.max(ms, status && 1000 * xhr.getResponseHeader('Retry-After') || 0) * (1 + Math.random() / 2);
    tell('onfail', { status: status, again_ms: ms });
    later(ms);
  }

  function take(page) {
    var gaps = [].concat(page.gap || []), events = page.events, i, ms;
    failures = 0;
    renewed = false;
    if (page.resume === 'reset') tell('onreset', gaps);
    else for (i = 0; i < gaps.length; i++) tell('ongap', gaps[i]);
    for (i = 0; i < events.length; i++) tell('onevent', events[i]);
    self.cursor = page.cursor;
    tell('onpage', page);
    ms = Math.max(page.poll_after_ms * (1 + Math.random() / 4), PAUSE_MS - (Date.now() - began));
    later(page.more ? 0 : ms);
  }

  start();
};
