/** What the page says, in English and in Portuguese. */

const ENGLISH = {
  tagline: "Live events, resumed without a gap",
  topic: "Topic", token: "Token", version: "Version", plain: "v1, plain", sealed: "v2, sealed",
  transport: "Transport", auto: "Automatic", sse: "Stream (SSE)", longPoll: "Long poll", poll: "Poll",
  connect: "Connect", disconnect: "Disconnect",
  numbers: "Numbers", lastNumber: "Last number:", noNumbers: "No number has come yet.",
  newest: "The newest 50 numbers, newest first", counts: "Among the newest 50", red: "red", black: "black", green: "green",
  connection: "Connection", latency: "Latency", events: "Events", gaps: "Gaps", why: "Why", cursor: "Cursor",
  trouble: "Make trouble", cut: "Cut the connection", offline: "Offline", force: "Poll only",
  publishing: "Publish an event", event: "Name", publisher: "Publisher's token", data: "Data (JSON)", publish: "Publish",
  newestEvents: "Newest events", frames: "Raw frames", pause: "Pause", clear: "Clear",
  ms: (value) => (value ? `${value} ms` : "< 1 ms"),
  lost: (count, lost) => (lost ? `${count} (${lost} lost)` : String(count)),
  chart: (numbers, times) => (times ? `How often each number came. Most often: ${numbers.join(", ")}, ${times} times.` : "No numbers yet."),
  published: (n, duplicate) => (duplicate ? `It was there already, as number ${n}.` : `Published as number ${n}.`),
  notJson: "This is no JSON.",
  failed: (why) => `Not published: ${why}`,
  gap: (lost) => (lost === null ? "Gap: events are missing." : `Gap: ${lost} events are missing.`),
  reset: "Reset: the log was replaced; starting over.",
  refused: (reason) => `An event was refused: ${reason}.`,
  spoken: (value, color) => `${value} ${color}`,
  states: {
    closed: "Not connected", connecting: "Connecting", waiting: "Waiting to reconnect", ended: "Ended",
    sse: "Live", "event-source": "Live", "long-poll": "Polling", poll: "Polling",
  },
  transports: { sse: "SSE", "event-source": "EventSource", "long-poll": "Long poll", poll: "Poll" },
  reasons: {
    "asked for": "You asked for it",
    failed: "No answer", cut: "The connection was cut", stalled: "The connection fell silent",
    drain: "The relay is stopping", max_age: "The stream was old", expired: "The token has ended", revoked: "The access was revoked",
    slow: "This browser was too slow", busy: "The relay is busy", unavailable: "The relay's log is away",
    no_token: "It needs a token", bad_token: "The token is not valid", token_expired: "The token has ended",
    not_subscribed: "There is no active subscription", topic_not_granted: "The token doesn't grant this topic",
    only_sealed: "This topic comes sealed alone: take v2", unknown_version: "The relay doesn't have this version", no_webcrypto: "Sealed events need https or localhost",
  },
};

const PORTUGUESE = {
  tagline: "Eventos ao vivo, retomados sem lacunas",
  topic: "Tópico", token: "Token", version: "Versão", plain: "v1, aberto", sealed: "v2, selado",
  transport: "Transporte", auto: "Automático", sse: "Stream (SSE)", longPoll: "Long poll", poll: "Poll",
  connect: "Conectar", disconnect: "Desconectar",
  numbers: "Números", lastNumber: "Último número:", noNumbers: "Nenhum número chegou ainda.",
  newest: "Os 50 números mais recentes, do mais novo ao mais antigo", counts: "Entre os 50 mais recentes",
  red: "vermelho", black: "preto", green: "verde",
  connection: "Conexão", latency: "Latência", events: "Eventos", gaps: "Lacunas", why: "Motivo", cursor: "Cursor",
  trouble: "Causar problemas", cut: "Cortar a conexão", offline: "Offline", force: "Só poll",
  publishing: "Publicar um evento", event: "Nome", publisher: "Token do publicador", data: "Dados (JSON)", publish: "Publicar",
  newestEvents: "Eventos mais recentes", frames: "Quadros brutos", pause: "Pausar", clear: "Limpar",
  ms: (value) => (value ? `${value} ms` : "< 1 ms"),
  lost: (count, lost) => (lost ? `${count} (${lost} perdidos)` : String(count)),
  chart: (numbers, times) => (times ? `Quantas vezes saiu cada número. Mais vezes: ${numbers.join(", ")}, ${times} vezes.` : "Nenhum número ainda."),
  published: (n, duplicate) => (duplicate ? `Já existia, como número ${n}.` : `Publicado como número ${n}.`),
  notJson: "Isto não é JSON.",
  failed: (why) => `Não publicado: ${why}`,
  gap: (lost) => (lost === null ? "Lacuna: faltam eventos." : `Lacuna: faltam ${lost} eventos.`),
  reset: "Reinício: o log foi substituído; começando de novo.",
  refused: (reason) => `Um evento foi recusado: ${reason}.`,
  spoken: (value, color) => `${value} ${color}`,
  states: {
    closed: "Desconectado", connecting: "Conectando", waiting: "Aguardando para reconectar", ended: "Encerrado",
    sse: "Ao vivo", "event-source": "Ao vivo", "long-poll": "Consultando", poll: "Consultando",
  },
  transports: { sse: "SSE", "event-source": "EventSource", "long-poll": "Long poll", poll: "Poll" },
  reasons: {
    "asked for": "Você pediu",
    "streams get through": "Os streams passam",
    "this browser's fetch can't stream": "O fetch deste navegador não faz streaming",
    "no hello came: something on the way holds streams back": "Nenhum hello chegou: algo no caminho segura os streams",
    "this browser can't stream, or EventSource can't tell all names": "Este navegador não faz streaming",
    "streams keep dying": "Os streams caem sem parar",
    "streams fall silent after hello": "Os streams se calam depois do hello",
    "streams are answered by something else": "Outra coisa responde aos streams",
    "answers that wait are cut off": "Respostas que esperam são cortadas",
    "the relay has too many answers that wait": "O relay tem respostas demais em espera",
    failed: "Sem resposta", cut: "A conexão foi cortada", stalled: "A conexão ficou muda",
    drain: "O relay está parando", max_age: "O stream era antigo", expired: "O token expirou", revoked: "O acesso foi revogado",
    slow: "Este navegador foi lento demais", busy: "O relay está ocupado", unavailable: "O log do relay está fora",
    no_token: "É preciso um token", bad_token: "O token não é válido", token_expired: "O token expirou",
    not_subscribed: "Não há assinatura ativa", topic_not_granted: "O token não dá acesso a este tópico",
    only_sealed: "Este tópico só vem selado: use v2", unknown_version: "O relay não tem esta versão", no_webcrypto: "Eventos selados precisam de https ou localhost",
  },
};

const portuguese = /^pt\b/i.test(navigator.language);
export const words = portuguese ? PORTUGUESE : ENGLISH;

/** A reason that client.js or the relay gives, for people; what isn't known is shown as it is. */
export function reasonInWords(reason) {
  const text = words.reasons[reason] ?? reason;
  return text && text[0].toUpperCase() + text.slice(1);
}

/** Puts the words into the page. */
export function translate() {
  document.documentElement.lang = portuguese ? "pt" : "en";
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = words[element.dataset.word];
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", words[element.dataset.label]);
}
