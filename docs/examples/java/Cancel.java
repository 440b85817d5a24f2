import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

/**
 * Asks for orders to be cancelled, and waits until it knows what became of each.
 *
 * <p>With Java 17 and the RabbitMQ client 5 (com.rabbitmq:amqp-client and org.slf4j:slf4j-api) in lib/:
 *
 * <pre>
 * AMQP_URL='amqp://guest:guest@127.0.0.1:5672/%2f' java -cp 'lib/*' Cancel.java QC202409200002 QC202409200001
 * </pre>
 *
 * COMMAND_ID in the environment is the command's id, TIMEOUT how many seconds it waits.
 *
 * <p>Ends with 0 when all are cancelled, 1 when not, 2 when it could not hear of all within the time.
 * What is not heard is not lost: send it again with the same id, and it is told again.
 */
public class Cancel {
  private static final String COMMANDS = "wdt.cancel.commands";

  public static void main(String[] orders) throws Exception {
    Map<String, String> environment = System.getenv();
    String id = environment.getOrDefault("COMMAND_ID", UUID.randomUUID().toString());
    long seconds = Long.parseLong(environment.getOrDefault("TIMEOUT", "120"));

    ConnectionFactory factory = new ConnectionFactory();
    factory.setUri(environment.getOrDefault("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f"));
    int status;
    try (Connection connection = factory.newConnection();
        Channel channel = connection.createChannel()) {
      status = cancel(channel, id, List.of(orders), seconds);
    }
    System.exit(status);
  }

  private static int cancel(Channel channel, String id, List<String> orders, long seconds)
      throws Exception {
    // A queue of our own, named by the broker and gone with this connection.
    String replies = channel.queueDeclare().getQueue();
    CompletableFuture<Integer> heard = new CompletableFuture<>();
    Set<String> seen = new HashSet<>(); // An event may come twice, with the same event_id.
    Map<String, String> outcomes = new HashMap<>(); // By the order's place in the command.
    channel.basicConsume(
        replies,
        false,
        (tag, message) -> {
          String event = new String(message.getBody(), StandardCharsets.UTF_8);
          if (seen.add(field(event, "event_id"))) {
            outcomes.put(field(event, "index"), field(event, "outcome"));
            System.out.println(event);
          }
          // After it is handled: here, shown. A service would record it first.
          channel.basicAck(message.getEnvelope().getDeliveryTag(), false);
          if (outcomes.size() == Integer.parseInt(field(event, "total"))) {
            heard.complete(Set.of("cancelled").containsAll(outcomes.values()) ? 0 : 1);
          }
        },
        tag -> heard.completeExceptionally(new IllegalStateException("the queue was taken away")));
    // A command that finds no queue comes back, before its confirm.
    channel.addReturnListener(
        returned ->
            heard.completeExceptionally(new IllegalStateException("there is no queue " + COMMANDS)));

    String list =
        orders.stream().map(o -> '"' + escaped(o) + '"').collect(Collectors.joining(","));
    AMQP.BasicProperties properties =
        new AMQP.BasicProperties.Builder()
            .messageId(id)
            .replyTo(replies)
            .contentType("application/json")
            .deliveryMode(2)
            .build();
    // It is in the queue when this returns; an error otherwise: it may then be sent again, with the
    // same id.
    channel.confirmSelect();
    byte[] body = ("{\"order_no_list\":[" + list + "]}").getBytes(StandardCharsets.UTF_8);
    channel.basicPublish("", COMMANDS, true, properties, body);
    channel.waitForConfirmsOrDie(30_000);
    try {
      return heard.get(seconds, TimeUnit.SECONDS);
    } catch (TimeoutException late) {
      System.err.println("not heard of all orders of command " + id + " in time");
      return 2;
    }
  }

  // Enough for the flat fields that are read here, so that the example needs no library for JSON; use
  // one in earnest.
  private static String field(String event, String name) {
    Matcher found = Pattern.compile('"' + name + "\":(?:\"([a-z0-9-]*)\"|(\\d+))").matcher(event);
    if (!found.find()) {
      throw new IllegalArgumentException(name + " is missing: " + event);
    }
    return found.group(1) != null ? found.group(1) : found.group(2);
  }

  private static String escaped(String text) {
    return text.replace("\\", "\\\\").replace("\"", "\\\"");
  }
}
